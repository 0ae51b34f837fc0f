//! Layers against plain formulas, and a gradient for every parameter.

use candle_core::{DType, Device, Module, ModuleT, Result, Tensor};
use sconce_nn::*;
use sconce_ops::ConvOptions;

fn store() -> ParamStore {
    ParamStore::new(7, DType::F64, &Device::Cpu)
}

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    Generator::new(seed).normal(0., 1., shape, DType::F64, &Device::Cpu).unwrap()
}

/// Moves every value of the store away from 0 and 1, so that a forgotten one is seen.
fn randomise(store: &ParamStore) {
    for param in store.iter() {
        let noise = Generator::new(3).fork(&param.name).uniform(0.5, 1.5, param.var.dims(), DType::F64, &Device::Cpu);
        store.set(&param.name, &noise.unwrap()).unwrap();
    }
}

fn close(a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
    assert!(difference < 1e-10, "{difference}");
}

/// Every parameter of the store gets a finite gradient that is not all zero.
fn all_train(store: &ParamStore, output: &Tensor) {
    let weights = normal(99, output.dims());
    let gradients = (output * weights).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(!store.parameters().is_empty());
    for param in store.parameters() {
        let gradient = gradients.get(&param.var).unwrap_or_else(|| panic!("no gradient for {}", param.name));
        let size = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(size.is_finite() && size > 0., "{}: {size}", param.name);
    }
    for param in store.buffers() {
        assert!(gradients.get(&param.var).is_none(), "{} is a buffer", param.name);
    }
}

fn var(store: &ParamStore, name: &str) -> Tensor {
    store.get(name).unwrap().as_detached_tensor()
}

#[test]
fn linear_with_and_without_bias_and_activation() -> Result<()> {
    let store = store();
    let fc = linear(5, 3, store.vb().pp("fc"))?;
    let proj = linear_no_bias(3, 2, store.vb().pp("proj"))?.with_activation(Activation::Relu);
    assert_eq!(store.names(), ["fc.weight", "fc.bias", "proj.weight"]);
    let xs = normal(1, &[2, 4, 5]);
    let hidden = fc.forward(&xs)?;
    let plain = xs.broadcast_matmul(&var(&store, "fc.weight").t()?)?.broadcast_add(&var(&store, "fc.bias"))?;
    close(&hidden, &plain);
    let ys = proj.forward(&hidden)?;
    close(&ys, &plain.broadcast_matmul(&var(&store, "proj.weight").t()?)?.relu()?);
    all_train(&store, &ys);
    assert!(fc.forward(&normal(1, &[2, 4])).is_err());
    Ok(())
}

#[test]
fn norms_over_the_last_axis() -> Result<()> {
    let store = store();
    let ln = layer_norm(6, 1e-3, store.vb().pp("ln"))?;
    let rms = rms_norm(6, 1e-3, store.vb().pp("rms"))?;
    randomise(&store);
    let xs = normal(2, &[3, 2, 6]);
    let centred = xs.broadcast_sub(&xs.mean_keepdim(2)?)?;
    let scale = (centred.sqr()?.mean_keepdim(2)? + 1e-3)?.sqrt()?;
    let normalised = centred.broadcast_div(&scale)?;
    let ys = ln.forward(&xs)?;
    close(&ys, &normalised.broadcast_mul(&var(&store, "ln.weight"))?.broadcast_add(&var(&store, "ln.bias"))?);
    close(&LayerNorm::plain(1e-3).forward(&xs)?, &normalised);
    let zs = rms.forward(&ys)?;
    let scale = (ys.sqr()?.mean_keepdim(2)? + 1e-3)?.sqrt()?;
    close(&zs, &ys.broadcast_div(&scale)?.broadcast_mul(&var(&store, "rms.weight"))?);
    all_train(&store, &zs);
    Ok(())
}

#[test]
fn group_norm_by_groups() -> Result<()> {
    let store = store();
    let norm = group_norm(2, 4, 1e-5, store.vb())?;
    randomise(&store);
    let xs = normal(3, &[3, 4, 5]);
    let grouped = xs.reshape((3, 2, 10))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
    let normalised = centred.broadcast_div(&(centred.sqr()?.mean_keepdim(2)? + 1e-5)?.sqrt()?)?.reshape((3, 4, 5))?;
    let column = |name: &str| var(&store, name).reshape((1, 4, 1));
    let plain = normalised.broadcast_mul(&column("weight")?)?.broadcast_add(&column("bias")?)?;
    let ys = norm.forward(&xs)?;
    close(&ys, &plain);
    all_train(&store, &ys);
    assert!(group_norm(3, 4, 1e-5, store.vb().pp("bad")).is_err());
    Ok(())
}

#[test]
fn batch_norm_tracks_in_training_only() -> Result<()> {
    let store = store();
    let mut norm = batch_norm(3, store.vb())?;
    assert_eq!(store.names(), ["weight", "bias", "running_mean", "running_var"]);
    assert_eq!(store.buffers().len(), 2);
    randomise(&store);
    let xs = normal(4, &[4, 3, 2, 5]);
    let channels = xs.transpose(0, 1)?.flatten_from(1)?; // (3, 40)
    let column = |t: &Tensor| t.reshape((1, 3, 1, 1));
    let (weight, bias) = (column(&var(&store, "weight"))?, column(&var(&store, "bias"))?);
    let normalise = |mean: &Tensor, variance: &Tensor| {
        let scaled = xs.broadcast_sub(&column(mean)?)?.broadcast_div(&column(&(variance + 1e-5)?.sqrt()?)?)?;
        scaled.broadcast_mul(&weight)?.broadcast_add(&bias)
    };
    // Values, for the storage of a variable changes under its detached tensors.
    let (old_mean, old_var) = (var(&store, "running_mean").copy()?, var(&store, "running_var").copy()?);
    close(&norm.forward_t(&xs, false)?, &normalise(&old_mean, &old_var)?);
    norm.frozen = true;
    close(&norm.forward_t(&xs, true)?, &normalise(&old_mean, &old_var)?);
    norm.frozen = false;

    let mean = channels.mean(1)?;
    let biased = channels.broadcast_sub(&channels.mean_keepdim(1)?)?.sqr()?.mean(1)?;
    let ys = norm.clone().forward_t(&xs, true)?;
    close(&ys, &normalise(&mean, &biased)?);
    close(&var(&store, "running_mean"), &((old_mean * 0.9)? + (mean * 0.1)?)?);
    close(&var(&store, "running_var"), &((old_var * 0.9)? + (biased * (0.1 * 40. / 39.))?)?);
    all_train(&store, &ys);
    all_train(&store, &norm.forward_t(&xs, false)?);
    Ok(())
}

/// A convolution as a sum over taps of shifted products, for one group.
fn conv2d_plain(xs: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let (b, _, h, w) = xs.dims4()?;
    let (out, _, kh, kw) = weight.dims4()?;
    let padded = xs.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let (oh, ow) = ((h + 2 * padding - kh) / stride + 1, (w + 2 * padding - kw) / stride + 1);
    let mut sum = bias.reshape((1, out, 1, 1))?.broadcast_as((b, out, oh, ow))?.contiguous()?;
    for (i, j) in (0..kh).flat_map(|i| (0..kw).map(move |j| (i, j))) {
        let rows = Tensor::from_vec((0..oh).map(|y| (y * stride + i) as u32).collect(), oh, &Device::Cpu)?;
        let columns = Tensor::from_vec((0..ow).map(|x| (x * stride + j) as u32).collect(), ow, &Device::Cpu)?;
        let window = padded.index_select(&rows, 2)?.index_select(&columns, 3)?; // (B, in, oh, ow)
        let tap = weight.narrow(2, i, 1)?.narrow(3, j, 1)?.flatten_from(1)?; // (out, in)
        let product = tap.unsqueeze(0)?.broadcast_matmul(&window.flatten_from(2)?)?;
        sum = (sum + product.reshape((b, out, oh, ow))?)?;
    }
    Ok(sum)
}

#[test]
fn convolutions_of_one_two_and_three_axes() -> Result<()> {
    let store = store();
    let vb = store.vb();
    let options = ConvOptions::default().stride(2).padding(1);
    let c2 = conv2d(3, 4, (3, 2), options, vb.pp("c2"))?;
    let xs = normal(5, &[2, 3, 6, 5]);
    let ys = c2.forward(&xs)?;
    close(&ys, &conv2d_plain(&xs, &var(&store, "c2.weight"), &var(&store, "c2.bias"), 2, 1)?);
    // Depthwise in time over the same map, seen as one axis and as video.
    let c1 = conv1d_no_bias(4, 4, 3, ConvOptions::default().groups(4).padding(1), vb.pp("c1"))?;
    assert_eq!(c1.weight.dims(), [4, 1, 3]);
    let zs = c1.forward(&ys.flatten_from(2)?)?;
    let c3 = conv3d(4, 2, [1, 2, 3], ConvOptions { padding: [0, 0, 1], ..Default::default() }, vb.pp("c3"))?;
    assert_eq!(c3.weight.dims(), [2, 4, 1, 2, 3]);
    let (b, c, n) = zs.dims3()?;
    assert_eq!(n, 9);
    let out = c3.forward(&zs.reshape((b, c, 1, 3, 3))?)?;
    assert_eq!(out.dims(), [2, 2, 1, 2, 3]);
    all_train(&store, &out);
    assert!(conv2d_no_bias(3, 4, 1, ConvOptions::default().groups(2), vb.pp("bad")).is_err());
    assert!(conv2d_no_bias(3, 4, 1, ConvOptions::default().groups(0), vb.pp("bad")).is_err());
    Ok(())
}

#[test]
fn mlp_patch_embedding_layer_scale_and_embedding() -> Result<()> {
    let store = store();
    let vb = store.vb();
    let patches = patch_embed(3, 6, 4, vb.pp("patch_embed"))?.with_norm(layer_norm(6, 1e-5, vb.pp("norm"))?);
    let options =
        MlpOptions { out: Some(5), names: ("c_fc", "c_proj"), activation: Activation::GeluQuick, ..MlpOptions::new(8) };
    let mlp = Mlp::new(6, &options, vb.pp("mlp"))?;
    let scale = layer_scale(5, 0.1, vb.pp("ls"))?;
    let names = store.names();
    assert_eq!(names[..2], ["patch_embed.proj.weight", "patch_embed.proj.bias"]);
    assert_eq!(names[4..], ["mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ls.gamma"]);
    randomise(&store);

    let image = normal(6, &[2, 3, 8, 12]);
    let tokens = patches.forward(&image)?;
    assert_eq!((tokens.dims(), patches.grid((8, 12))), (&[2, 6, 6][..], (2, 3)));
    let weight = var(&store, "patch_embed.proj.weight").flatten_from(1)?; // (C, 48)
    let corner = image.narrow(2, 4, 4)?.narrow(3, 8, 4)?.flatten_from(1)?; // last patch, (B, 48)
    let last = corner.matmul(&weight.t()?)?.broadcast_add(&var(&store, "patch_embed.proj.bias"))?;
    let last = patches.norm.as_ref().map(|norm| norm.forward(&last)).transpose()?;
    close(&tokens.narrow(1, 5, 1)?.squeeze(1)?, &last.expect("it has a norm"));
    assert!(patches.forward(&normal(6, &[2, 3, 9, 12])).is_err());

    let hidden =
        tokens.broadcast_matmul(&var(&store, "mlp.c_fc.weight").t()?)?.broadcast_add(&var(&store, "mlp.c_fc.bias"))?;
    let hidden = (&hidden * ((&hidden * -1.702)?.exp()? + 1.)?.recip()?)?;
    let plain = hidden
        .broadcast_matmul(&var(&store, "mlp.c_proj.weight").t()?)?
        .broadcast_add(&var(&store, "mlp.c_proj.bias"))?;
    let ys = mlp.forward_t(&tokens, false)?;
    close(&ys, &plain);
    let zs = scale.forward(&ys)?;
    close(&zs, &plain.broadcast_mul(&var(&store, "ls.gamma"))?);
    all_train(&store, &zs);

    let table = ParamStore::new(1, DType::F64, &Device::Cpu);
    let words = embedding(7, 4, Init::Normal { mean: 0., std: 0.02 }, table.vb())?;
    let ids = Tensor::new(&[[1u32, 6], [0, 1]], &Device::Cpu)?;
    let vectors = words.forward(&ids)?;
    assert_eq!(vectors.dims(), [2, 2, 4]);
    close(&vectors.get(0)?.get(1)?, &var(&table, "weight").get(6)?);
    all_train(&table, &vectors);
    assert!(words.forward(&Tensor::new(&[7u32], &Device::Cpu)?).is_err());
    Ok(())
}

#[test]
fn dropout_and_drop_path_draw_from_the_current_generator() -> Result<()> {
    let xs = Tensor::ones((64, 8, 4), DType::F64, &Device::Cpu)?;
    let values = |t: Tensor| t.flatten_all()?.to_vec1::<f64>();
    for p in [0., 0.5] {
        close(&Dropout::new(p).forward_t(&xs, false)?, &xs);
        close(&DropPath::new(p).forward_t(&xs, false)?, &xs);
    }
    close(&Dropout::new(0.).forward_t(&xs, true)?, &xs);
    let draw = |seed| Generator::new(seed).scope(|| values(Dropout::new(0.25).forward_t(&xs, true)?));
    let dropped = draw(1)?;
    assert_eq!(dropped, draw(1)?);
    assert_ne!(dropped, draw(2)?);
    assert!(dropped.iter().all(|&x| x == 0. || (x - 4. / 3.).abs() < 1e-12));
    let share = dropped.iter().filter(|&&x| x == 0.).count() as f64 / dropped.len() as f64;
    assert!((share - 0.25).abs() < 0.05, "{share}");

    let paths = Generator::new(1).scope(|| values(DropPath::new(0.5).forward_t(&xs, true)?))?;
    assert!(paths.chunks(32).all(|sample| sample.iter().all(|x| *x == sample[0])));
    let kept = paths.chunks(32).filter(|sample| sample[0] == 2.).count();
    assert!((16..=48).contains(&kept) && paths.iter().all(|&x| x == 0. || x == 2.), "{kept}");

    assert_eq!(drop_path_rates(0.3, 1), [0.]);
    assert!(drop_path_rates(0.3, 0).is_empty());
    Ok(())
}

#[test]
fn layers_work_on_candles_own_builders() -> Result<()> {
    let map = candle_nn::VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    linear(4, 3, vb.pp("fc"))?;
    batch_norm(3, vb.pp("bn"))?;
    Linear::with_init(4, 3, true, Init::TruncNormal { std: 0.02 }, vb.pp("tn"))?;
    let data = map.data().lock().unwrap();
    let values = |name: &str| data[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(values("fc.weight").iter().all(|w| w.abs() <= 0.5) && values("fc.weight").iter().any(|w| *w != 0.));
    assert_eq!(values("bn.running_var"), [1.; 3]);
    assert!(values("tn.weight").iter().all(|w| w.abs() < 0.2) && values("tn.bias") == [0.; 3]);
    Ok(())
}
