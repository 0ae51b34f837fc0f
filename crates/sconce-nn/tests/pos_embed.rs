//! The three rules of resampling position embeddings.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use sconce_nn::pos_embed::{resample_deit, resample_dino, resample_timm};
use sconce_nn::{Checkpoint, Generator};

fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap().to_dtype(DType::F64).unwrap();
    let difference = difference.flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
    assert!(difference < tolerance, "{difference}");
}

fn embedding(rows: usize) -> Tensor {
    Generator::new(1).normal(0., 1., (1, rows, 3), DType::F64, &Device::Cpu).unwrap()
}

/// Cubic convolution with a = -0.75 along one axis, borders repeated; `step` is the distance of samples.
fn bicubic_row(n: usize, out: usize, step: f64) -> Vec<Vec<f64>> {
    let a = -0.75;
    let kernel = |x: f64| match x.abs() {
        x if x <= 1. => ((a + 2.) * x - (a + 3.)) * x * x + 1.,
        x if x < 2. => ((a * x - 5. * a) * x + 8. * a) * x - 4. * a,
        _ => 0.,
    };
    let weights = |i: usize| {
        let centre = (i as f64 + 0.5) * step - 0.5;
        let mut row = vec![0.; n];
        for tap in -1..=2 {
            let at = centre.floor() as i64 + tap;
            row[at.clamp(0, n as i64 - 1) as usize] += kernel(centre - at as f64);
        }
        row
    };
    (0..out).map(weights).collect()
}

fn plain(pos: &Tensor, side: usize, (h, w): (usize, usize), step: impl Fn(usize) -> f64) -> Result<Tensor> {
    let rows = Tensor::new(bicubic_row(side, h, step(h)), &Device::Cpu)?;
    let columns = Tensor::new(bicubic_row(side, w, step(w)), &Device::Cpu)?;
    let grid = pos.narrow(1, 2, side * side)?.reshape((side, side, 3))?;
    let grid = rows.matmul(&grid.reshape((side, side * 3))?)?.reshape((h, side, 3))?; // (H, S, C)
    let grid = columns.broadcast_left(h)?.contiguous()?.matmul(&grid)?; // (H, W, C)
    Tensor::cat(&[pos.narrow(1, 0, 2)?, grid.reshape((1, h * w, 3))?], 1)
}

#[test]
fn deit_and_dino_against_the_formula() -> Result<()> {
    let pos = embedding(2 + 16);
    for to in [(6, 5), (3, 4), (2, 7)] {
        close(&resample_deit(&pos, 2, to)?, &plain(&pos, 4, to, |n| 4. / n as f64)?, 1e-12);
        close(&resample_dino(&pos, 2, to)?, &plain(&pos, 4, to, |n| 4. / (n as f64 + 0.1))?, 1e-12);
    }
    Ok(())
}

#[test]
fn antialiasing_matters_when_shrinking_only_in_timm() -> Result<()> {
    let pos = embedding(1 + 64);
    let (timm, deit) = (resample_timm(&pos, 1, (4, 4))?, resample_deit(&pos, 1, (4, 4))?);
    assert!((timm - deit)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()? > 0.1);
    // A constant stays one under every rule.
    let flat = Tensor::ones((1, 9, 3), DType::F64, &Device::Cpu)?;
    for rule in [resample_timm, resample_deit, resample_dino] {
        close(&rule(&flat, 0, (5, 4))?, &Tensor::ones((1, 20, 3), DType::F64, &Device::Cpu)?, 1e-12);
    }
    Ok(())
}

#[test]
fn the_same_grid_is_returned_and_gradients_flow() -> Result<()> {
    let pos = Var::from_tensor(&embedding(1 + 9))?;
    for rule in [resample_timm, resample_deit, resample_dino] {
        close(&rule(&pos, 1, (3, 3))?, &pos, 1e-300);
        let gradients = rule(&pos, 1, (4, 5))?.sum_all()?.backward()?;
        let gradient = gradients.get(&pos).expect("pos_embed is trained");
        // Each new row is a mean of old ones: the sums agree.
        assert!((gradient.sum_all()?.to_scalar::<f64>()? - 63.).abs() < 1e-9);
    }
    Ok(())
}

#[test]
fn shapes_that_are_no_embedding() {
    for (rows, prefix) in [(10, 0), (10, 11), (1, 1), (11, 1)] {
        assert!(resample_timm(&embedding(rows), prefix, (2, 2)).is_err(), "{rows} {prefix}");
    }
    assert!(resample_timm(&embedding(10), 1, (0, 2)).is_err());
}

/// Numbers of the official functions, where the repository that holds them is checked out.
#[test]
fn official_numbers() -> Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vit/pos_resample/io.safetensors");
    if !golden.exists() {
        return Ok(());
    }
    let golden = Checkpoint::open(golden)?;
    let read = |name: &str| golden.tensor(name, &Device::Cpu);
    let pos = read("pos_embed")?;
    close(&resample_timm(&pos, 1, (6, 6))?, &read("resampled_antialias")?, 1e-5);
    close(&resample_deit(&pos, 1, (6, 6))?, &read("resampled_noantialias")?, 1e-5);
    Ok(())
}
