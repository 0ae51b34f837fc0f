use candle_core::{DType, Device, IndexOp, Var};
use sconce_nn::{Generator, ParamStore};

use super::*;

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    Generator::new(seed).normal(0.0, 1.0, shape, DType::F64, &Device::Cpu).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn layout(height: usize, width: usize) -> TokenLayout {
    TokenLayout { prefix: 0, height, width }
}

/// Weights large enough for attention to be far from uniform, biases too.
fn attention(window: [usize; 2], shift: [usize; 2]) -> (WindowAttention, ParamStore) {
    let store = ParamStore::new(1, DType::F64, &Device::Cpu);
    let init = Init::Normal { mean: 0.0, std: 0.5 };
    let cfg = WindowAttentionConfig { window, shift, init, ..WindowAttentionConfig::new(6, 2, 1) };
    let attention = WindowAttention::new(&cfg, store.vb()).unwrap();
    store.set("qkv.bias", &normal(3, &[18])).unwrap();
    store.set("proj.bias", &normal(4, &[6])).unwrap();
    (attention, store)
}

fn roll(xs: &Tensor, axis: usize, by: usize) -> Tensor {
    let n = xs.dim(axis).unwrap();
    Tensor::cat(&[xs.narrow(axis, by, n - by).unwrap(), xs.narrow(axis, 0, by).unwrap()], axis).unwrap()
}

/// One window by the definition, scores one by one: `xs` are the tokens, `region` says who may see whom.
fn by_definition(attention: &WindowAttention, xs: &[Vec<f64>], size: [usize; 2], region: &[usize]) -> Vec<Vec<f64>> {
    let rows = |t: &Tensor| t.to_vec2::<f64>().unwrap();
    let affine = |linear: &Linear, x: &[f64]| -> Vec<f64> {
        let bias = linear.bias.as_ref().unwrap().to_vec1::<f64>().unwrap();
        let product = |w: &Vec<f64>| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        rows(&linear.weight).iter().zip(bias).map(|(w, b)| product(w) + b).collect()
    };
    let table = rows(&attention.relative_position_bias_table);
    let qkv: Vec<_> = xs.iter().map(|x| affine(&attention.qkv, x)).collect();
    let place = |i: usize| ((i / size[1]) as i64, (i % size[1]) as i64);
    let [wh, ww] = attention.window.map(|n| n as i64);
    (0..xs.len())
        .map(|i| {
            let mut mixed = vec![0.0; 6];
            for head in 0..2 {
                let weights: Vec<f64> = (0..xs.len())
                    .map(|j| {
                        let dot: f64 = (0..3).map(|d| qkv[i][head * 3 + d] * qkv[j][6 + head * 3 + d]).sum();
                        let (dy, dx) = (place(i).0 - place(j).0, place(i).1 - place(j).1);
                        let bias = table[((dy + wh - 1) * (2 * ww - 1) + dx + ww - 1) as usize][head];
                        let mask = if region[i] == region[j] { 0.0 } else { -100.0 };
                        (dot / 3f64.sqrt() + bias + mask).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (j, weight) in weights.iter().enumerate() {
                    for d in 0..3 {
                        mixed[head * 3 + d] += weight / total * qkv[j][12 + head * 3 + d];
                    }
                }
            }
            affine(&attention.proj, &mixed)
        })
        .collect()
}

#[test]
fn agrees_with_rolling_padding_and_cutting() {
    for ([h, w], window, shift) in [
        ([4, 6], [2, 2], [0, 0]),
        ([4, 6], [2, 2], [1, 1]),
        ([6, 6], [3, 3], [1, 1]),
        ([5, 7], [3, 3], [1, 1]), // padded
        ([5, 4], [3, 2], [0, 1]),
    ] {
        let (attention, _) = attention(window, shift);
        let xs = normal(2, &[2, h * w, 6]);
        let ys = attention.forward_layout(&xs, layout(h, w), false).unwrap();
        let [gh, gw] = [h.div_ceil(window[0]), w.div_ceil(window[1])];
        let [ph, pw] = [gh * window[0], gw * window[1]];
        for sample in 0..2 {
            let map = xs.i(sample).unwrap().reshape((h, w, 6)).unwrap();
            let map = roll(&roll(&map, 0, shift[0]), 1, shift[1]);
            let map = map.pad_with_zeros(0, 0, ph - h).unwrap().pad_with_zeros(1, 0, pw - w).unwrap();
            let map = map.reshape((gh, window[0], gw, window[1], 6)).unwrap().permute((0, 2, 1, 3, 4)).unwrap();
            let map = map.reshape((gh * gw, window[0] * window[1], 6)).unwrap().to_vec3::<f64>().unwrap();
            for (number, tokens) in map.iter().enumerate() {
                let at = |i: usize| {
                    let (y, x) = (number / gw * window[0] + i / window[1], number % gw * window[1] + i % window[1]);
                    (y, x)
                };
                let band = |at: usize, n: usize, axis: usize| {
                    usize::from(at + window[axis] >= n) + usize::from(at + shift[axis] >= n)
                };
                let region: Vec<_> =
                    (0..tokens.len()).map(at).map(|(y, x)| 3 * band(y, ph, 0) + band(x, pw, 1)).collect();
                for (i, wanted) in by_definition(&attention, tokens, window, &region).iter().enumerate() {
                    let (y, x) = at(i);
                    if y < h && x < w {
                        let token = (y + shift[0]) % h * w + (x + shift[1]) % w;
                        let found = ys.i((sample, token)).unwrap().to_vec1::<f64>().unwrap();
                        let error = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                        assert!(error < 1e-12, "{h} x {w}, {window:?}, {shift:?}, token {token}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn queries_keys_and_values_are_those_of_the_map() {
    for (h, w) in [(4, 6), (5, 7), (3, 3)] {
        let (attention, _) = attention([3, 3], [1, 1]);
        let xs = normal(2, &[2, h * w, 6]);
        let (ys, qkv) = attention.forward_qkv(&xs, layout(h, w), false).unwrap();
        assert!(distance(&ys, &attention.forward_layout(&xs, layout(h, w), false).unwrap()) < 1e-12);
        let Qkv { q, v, .. } = qkv.unwrap();
        let projected = attention.qkv.forward(&xs).unwrap();
        let merged = |t: Tensor| t.transpose(1, 2).unwrap().flatten_from(2).unwrap();
        assert_eq!(distance(&merged(q), &projected.narrow(2, 0, 6).unwrap()), 0.0);
        assert_eq!(distance(&merged(v), &projected.narrow(2, 12, 6).unwrap()), 0.0);
    }
}

#[test]
fn a_small_map_uses_the_middle_of_the_table() {
    let (large, store) = attention([4, 4], [2, 2]);
    let (small, _) = attention([3, 3], [1, 1]);
    let table = large.relative_position_bias_table.reshape((7, 7, 2)).unwrap();
    let middle = table.narrow(0, 1, 5).unwrap().narrow(1, 1, 5).unwrap().reshape((25, 2)).unwrap();
    let small = WindowAttention { relative_position_bias_table: middle, ..small };
    for name in ["qkv.weight", "proj.weight"] {
        assert_eq!(store.get(name).unwrap().dims()[1], 6);
    }
    let small = WindowAttention { qkv: large.qkv.clone(), proj: large.proj.clone(), ..small };
    let xs = normal(2, &[1, 15, 6]);
    let run = |attention: &WindowAttention| attention.forward_layout(&xs, layout(3, 5), false).unwrap();
    assert!(distance(&run(&large), &run(&small)) < 1e-12);
    let fitted = WindowAttentionConfig { shift: [3; 2], ..WindowAttentionConfig::new(6, 2, 7) }.for_map(layout(3, 5));
    assert_eq!((fitted.window, fitted.shift), ([3; 2], [1; 2]));
}

#[test]
fn every_parameter_and_the_input_get_their_gradients() {
    let (attention, store) = attention([3, 3], [1, 1]);
    let xs = Var::from_tensor(&normal(2, &[2, 35, 6])).unwrap();
    let cotangent = normal(5, &[2, 6, 35]);
    let loss = |xs: &Tensor| {
        let ys = attention.forward_layout(xs, layout(5, 7), true).unwrap();
        // The transposed product hands a gradient back that is not contiguous.
        (ys.transpose(1, 2).unwrap() * &cotangent).unwrap().sum_all().unwrap()
    };
    let grads = loss(&xs).backward().unwrap();
    let value = |t: Tensor| t.to_scalar::<f64>().unwrap();
    let tensors = store
        .parameters()
        .into_iter()
        .map(|p| (p.name.to_string(), p.var.clone()))
        .chain([("input".into(), xs.clone())]);
    for (name, var) in tensors {
        let start = var.as_detached_tensor().copy().unwrap();
        let direction = normal(6, start.dims());
        let step = 1e-5;
        let moved = |by: f64| {
            var.set(&(&start + (&direction * by).unwrap()).unwrap()).unwrap();
            value(loss(&xs))
        };
        let expected = (moved(step) - moved(-step)) / (2.0 * step);
        var.set(&start).unwrap();
        let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
        let found = value((grad * &direction).unwrap().sum_all().unwrap());
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{name}: {found} instead of {expected}");
    }
}

#[test]
fn windows_are_put_together_as_they_were_cut() {
    for (map, size, shift) in
        [(layout(4, 6), [2, 3], [1, 1]), (layout(5, 3), [2, 2], [0, 1]), (layout(3, 3), [3, 3], [0, 0])]
    {
        let windows = Windows::new(map, size, shift, &Device::Cpu).unwrap();
        let xs = normal(1, &[2, map.len(), 4]);
        let cut = windows.partition(&xs).unwrap();
        assert_eq!(cut.dims(), [2 * windows.len(), windows.area(), 4]);
        assert_eq!(distance(&windows.merge(&cut).unwrap(), &xs), 0.0);
        assert!(windows.merge(&normal(1, &[1, windows.area() + 1, 4])).is_err());
        assert!(windows.partition(&normal(1, &[1, map.len() + 1, 4])).is_err());
    }
}

#[test]
fn tables_follow_the_window() {
    let table = normal(1, &[25, 2]);
    let same = resample_bias_table(&table, 3).unwrap();
    assert!(distance(&same, &table) < 1e-12);
    let hook = bias_table_hook();
    let name = "layers.0.blocks.0.attn.relative_position_bias_table";
    let larger = hook(name, &table, &[49, 2]).unwrap().unwrap();
    assert_eq!(larger.dims(), [49, 2]);
    // The middle stays in the middle.
    let middle = |t: &Tensor| t.i(t.dim(0).unwrap() / 2).unwrap();
    assert!(distance(&middle(&larger), &middle(&table)) < 1e-12);
    for (name, wanted) in [("pos_embed", [49, 2]), (name, [49, 3]), (name, [36, 2]), (name, [35, 2])] {
        assert!(hook(name, &table, &wanted).unwrap().is_none(), "{name} {wanted:?}");
    }
    assert!(resample_bias_table(&table, 0).is_err() && resample_bias_table(&normal(1, &[24, 2]), 3).is_err());
}

#[test]
fn what_does_not_fit_is_refused() {
    let new = |cfg: WindowAttentionConfig| {
        WindowAttention::new(&cfg, ParamStore::new(1, DType::F32, &Device::Cpu).vb())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let cfg = WindowAttentionConfig::new(6, 2, 3);
    assert!(new(WindowAttentionConfig { heads: 4, ..cfg }).contains("6 channels"));
    assert!(new(WindowAttentionConfig { heads: 0, ..cfg }).contains("6 channels"));
    assert!(new(WindowAttentionConfig { shift: [3, 0], ..cfg }).contains("[3, 0]"));
    assert!(new(WindowAttentionConfig { window: [0, 3], ..cfg }).contains("[0, 3]"));
    let (attention, _) = attention([3, 3], [1, 1]);
    let prefix = TokenLayout { prefix: 1, height: 4, width: 4 };
    assert!(attention.forward_layout(&normal(1, &[1, 17, 6]), prefix, false).is_err());
    assert!(attention.forward_layout(&normal(1, &[1, 15, 6]), layout(4, 4), false).is_err());
    assert!(attention.forward_t(&normal(1, &[1, 15, 6]), false).unwrap_err().to_string().contains("forward_layout"));
    assert!(attention.forward_t(&normal(1, &[1, 16, 6]), false).is_ok());
}
