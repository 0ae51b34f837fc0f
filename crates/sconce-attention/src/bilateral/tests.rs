use candle_core::{D, DType, Device, Var};
use sconce_nn::{Generator, ParamStore};
use sconce_ops::Mask;

use super::*;

const CLUSTERS: ClusterOptions = ClusterOptions { leaf: 4, temperature: 100.0, iterations: 2 };

fn config() -> BilateralConfig {
    let init = Init::Normal { mean: 0.0, std: 0.5 };
    BilateralConfig { clusters: CLUSTERS, overlap: 3, init, ..BilateralConfig::new(12, 3) }
}

fn mixer(cfg: &BilateralConfig) -> (BilateralAttention, ParamStore) {
    let store = ParamStore::new(1, DType::F64, &Device::Cpu);
    (BilateralAttention::new(cfg, store.vb()).unwrap(), store)
}

fn tokens(seed: u64, batch: usize, n: usize) -> Tensor {
    Generator::new(seed).normal(0.0, 1.0, (batch, n, 12), DType::F64, &Device::Cpu).unwrap()
}

fn layout(height: usize, width: usize) -> TokenLayout {
    TokenLayout { prefix: 0, height, width }
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
}

/// Which keys each query may see, as a mask over all tokens of an image: `(B, heads, N, N)`.
fn mask(order: &Tensor, leaf: usize, overlap: usize) -> Tensor {
    let (b, heads, n) = order.dims3().unwrap();
    let order = order.to_vec3::<u32>().unwrap();
    let mut mask = vec![f64::NEG_INFINITY; b * heads * n * n];
    for (row, order) in order.iter().flatten().enumerate() {
        for place in 0..n {
            let own = place / leaf;
            let next = own.is_multiple_of(2);
            let visible = (0..n).filter(|other| {
                let (index, at) = (other / leaf, other % leaf);
                let borrowed = if next { at < overlap } else { at >= leaf - overlap };
                index == own || (index == own ^ 1 && borrowed)
            });
            for other in visible {
                mask[(row * n + order[place] as usize) * n + order[other] as usize] = 0.0;
            }
        }
    }
    Tensor::from_vec(mask, (b, heads, n, n), &Device::Cpu).unwrap()
}

#[test]
fn agrees_with_masked_attention_over_all_tokens() {
    let (mixer, _) = mixer(&config());
    for (height, width, leaf) in [(4, 4, 4), (8, 4, 4), (4, 5, 5)] {
        let n = height * width;
        let xs = tokens(2, 2, n);
        let (ys, qkv) = mixer.forward_qkv(&xs, layout(height, width), false).unwrap();
        let Qkv { q, k, v } = qkv.unwrap();
        let options = AttentionOptions::default().with_mask(Mask::Additive(mask(&mixer.order(&xs).unwrap(), leaf, 3)));
        let mixed = attention(&q, &k, &v, &options).unwrap().transpose(1, 2).unwrap().flatten_from(2).unwrap();
        let map = v.permute((0, 1, 3, 2)).unwrap().reshape((2, 12, height, width)).unwrap();
        let lepe = mixer.get_v.forward(&map).unwrap().flatten_from(2).unwrap().transpose(1, 2).unwrap();
        let expected = mixer.proj.forward(&(mixed + lepe).unwrap()).unwrap();
        assert!(distance(&ys, &expected) < 1e-12, "{height} x {width}");
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let (mixer, store) = mixer(&config());
    let input = Var::from_tensor(&tokens(2, 2, 16)).unwrap();
    let cotangent = tokens(3, 2, 16);
    let loss = || (mixer.forward_t(&input, false).unwrap() * &cotangent).unwrap().sum_all().unwrap();
    let grads = loss().backward().unwrap();
    let step = 1e-6;
    for (name, var) in store.iter().map(|p| (p.name.to_string(), p.var)).chain([("input".into(), input.clone())]) {
        let start = var.as_detached_tensor().copy().unwrap();
        let direction = Generator::new(5).normal(0.0, 1.0, start.shape(), DType::F64, &Device::Cpu).unwrap();
        let at = |t: f64| {
            var.set(&(&start + (&direction * t).unwrap()).unwrap()).unwrap();
            loss().to_scalar::<f64>().unwrap()
        };
        let measured = (at(step) - at(-step)) / (2.0 * step);
        var.set(&start).unwrap();
        let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
        let found = (grad * &direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!((found - measured).abs() < 1e-7 * (1.0 + measured.abs()), "{name}: {found} instead of {measured}");
    }
}

#[test]
fn a_single_leaf_borrows_from_the_next_image_only_when_told_to() {
    for (compat, differs) in [(false, false), (true, true)] {
        let (mixer, _) = mixer(&BilateralConfig { compat, ..config() });
        let (xs, other) = (tokens(2, 2, 4), tokens(3, 2, 4));
        let changed = Tensor::cat(&[xs.narrow(0, 0, 1).unwrap(), other.narrow(0, 1, 1).unwrap()], 0).unwrap();
        let first = |xs: &Tensor| mixer.forward_t(xs, false).unwrap().narrow(0, 0, 1).unwrap();
        assert_eq!(distance(&first(&xs), &first(&changed)) > 1e-6, differs);
        let odd = mixer.forward_t(&tokens(2, 3, 4), false);
        assert_eq!(odd.is_err(), compat);
        // With two leaves and more an image is alone with itself.
        assert_eq!(mixer.forward_t(&tokens(2, 3, 16), false).unwrap().dims(), [3, 16, 12]);
        let (xs, other) = (tokens(2, 2, 16), tokens(3, 2, 16));
        let changed = Tensor::cat(&[xs.narrow(0, 0, 1).unwrap(), other.narrow(0, 1, 1).unwrap()], 0).unwrap();
        assert_eq!(distance(&first(&xs), &first(&changed)), 0.0);
    }
}

#[test]
fn all_float_types_flow() {
    let (mixer, store) = mixer(&config());
    let expected = mixer.forward_t(&tokens(2, 2, 16), false).unwrap();
    for (dtype, allowed) in [(DType::F32, 1e-5), (DType::F16, 0.1), (DType::BF16, 0.3)] {
        let tensors = store.iter().map(|p| (p.name.to_string(), p.var.as_detached_tensor()));
        let vb = sconce_nn::Checkpoint::from_tensors(tensors).vb(dtype, &Device::Cpu);
        let mixer = BilateralAttention::new(&config(), vb).unwrap();
        let ys = mixer.forward_t(&tokens(2, 2, 16).to_dtype(dtype).unwrap(), false).unwrap();
        assert_eq!(ys.dtype(), dtype);
        // Rounded queries may move a token to another leaf: values must be near on average, not all of them.
        let mean = |xs: Tensor| xs.abs().unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap();
        let error = mean((ys.to_dtype(DType::F64).unwrap() - &expected).unwrap()) / mean(expected.clone());
        assert!(error < allowed, "{dtype:?}: {error}");
    }
}

#[test]
fn what_does_not_divide_is_refused() {
    let store = ParamStore::new(1, DType::F64, &Device::Cpu);
    let no_leaf = ClusterOptions { leaf: 0, ..CLUSTERS };
    for bad in [
        BilateralConfig { heads: 0, ..config() },
        BilateralConfig { heads: 5, ..config() },
        BilateralConfig { clusters: no_leaf, ..config() },
    ] {
        assert!(BilateralAttention::new(&bad, store.vb()).is_err(), "{bad:?}");
    }
    let (mixer, _) = mixer(&config());
    let error = mixer.forward_t(&tokens(2, 1, 25), false).unwrap_err().to_string();
    assert!(error.contains("25 tokens"), "{error}");
    assert!(mixer.forward_layout(&tokens(2, 1, 17), TokenLayout { prefix: 1, ..layout(4, 4) }, false).is_err());
    assert!(mixer.forward_layout(&tokens(2, 1, 16), layout(4, 5), false).is_err());
}
