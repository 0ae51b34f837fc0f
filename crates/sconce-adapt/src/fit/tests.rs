use super::*;
use candle_core::Device;
use sconce_nn::{Module, linear};
use sconce_ops::Generator;

/// Features around a centre for each of three classes.
fn pictures(n: usize, seed: u64) -> Result<(Tensor, Tensor)> {
    let generator = Generator::new(seed);
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    let noise = generator.normal(0.0, 0.3, (n, 4), DType::F32, &Device::Cpu)?;
    let mut centres = vec![0f32; n * 4];
    for (i, &label) in labels.iter().enumerate() {
        centres[i * 4 + label as usize] = 1.0;
    }
    Ok(((noise + Tensor::from_vec(centres, (n, 4), &Device::Cpu)?)?, Tensor::new(labels, &Device::Cpu)?))
}

#[test]
fn a_linear_head_learns() -> Result<()> {
    let (features, labels) = pictures(30, 1)?;
    let store = ParamStore::new(3, DType::F32, &Device::Cpu);
    let head = linear(4, 3, store.vb())?;
    let cfg = FitConfig { lr: 0.5, epochs: 20, batch_size: 8, ..Default::default() };
    let report = fit(&store, &features, &labels, &cfg, &FitOptions::default(), |x| head.forward(x))?;
    assert_eq!((report.history.len(), report.outcome, report.best), (20, Outcome::Completed, None));
    assert!(report.history[19].loss < 0.5 * report.history[0].loss);
    assert!(accuracy(&head.forward(&features)?, &labels)? > 0.9);
    Ok(())
}
