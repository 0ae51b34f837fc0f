//! Counting multiply-accumulates.

use std::cell::Cell;

thread_local! {
    /// The count of the innermost scope of this thread; `None` outside of all scopes.
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `f` and counts the multiply-accumulates of the [`linear`](crate::linear()), [`matmul`](crate::matmul()),
/// convolution and [attention](crate::attention()) calls that it makes on this thread: what papers and PyTorch's counter
/// call MACs, half the FLOPs of these operations.
///
/// Convolutions count the padding too, and attention counts what its masks hide, as if every score were computed. Norms,
/// activations, pooling and resizing count nothing, nor does a backward pass. The kernels' own threads make no difference;
/// calls that `f` itself makes on other threads do not count. Scopes may be nested: the outer one counts the inner one too.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sconce_ops::{count_macs, linear};
///
/// let xs = Tensor::zeros((8, 16), DType::F32, &Device::Cpu)?;
/// let weight = Tensor::zeros((4, 16), DType::F32, &Device::Cpu)?;
/// let (ys, macs) = count_macs(|| linear(&xs, &weight, None, None));
/// assert_eq!((ys?.dims(), macs), (&[8, 4][..], 8 * 16 * 4));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn count_macs<T>(f: impl FnOnce() -> T) -> (T, u64) {
    let scope = Scope(COUNT.replace(Some(0)));
    let result = f();
    let count = COUNT.get().unwrap_or(0);
    drop(scope);
    (result, count)
}

/// Ends a scope, also when its closure panics.
struct Scope(Option<u64>);

impl Drop for Scope {
    fn drop(&mut self) {
        let inner = COUNT.get().unwrap_or(0);
        COUNT.set(self.0.map(|outer| outer.saturating_add(inner)));
    }
}

/// Adds the product of the factors, which nothing reads outside of a scope.
pub(crate) fn add(factors: &[usize]) {
    if let Some(count) = COUNT.get() {
        let product = factors.iter().fold(1u64, |product, &factor| product.saturating_mul(factor as u64));
        COUNT.set(Some(count.saturating_add(product)));
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use super::*;
    use crate::{
        AttentionOptions, ConvOptions, attention, attention_packed, attention_weights, conv1d, conv2d, conv3d, linear,
        matmul,
    };

    fn zeros(dims: &[usize]) -> Tensor {
        Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap()
    }

    fn macs(f: impl FnOnce() -> Result<Tensor>) -> u64 {
        let (ys, macs) = count_macs(f);
        ys.unwrap();
        macs
    }

    #[test]
    fn products_count_rows_times_inner_times_columns() {
        assert_eq!(macs(|| linear(&zeros(&[2, 3, 5]), &zeros(&[7, 5]), Some(&zeros(&[7])), None)), 2 * 3 * 5 * 7);
        assert_eq!(macs(|| matmul(&zeros(&[4, 2, 3]), &zeros(&[4, 3, 5]))), 4 * 2 * 3 * 5);
        assert_eq!(macs(|| matmul(&zeros(&[4, 2, 3]), &zeros(&[3, 5]))), 4 * 2 * 3 * 5);
        assert_eq!(macs(|| matmul(&zeros(&[0, 2, 3]), &zeros(&[3, 5]))), 0);
    }

    #[test]
    fn convolutions_count_every_tap_of_every_output() {
        let padded = ConvOptions::<2>::default().padding(1);
        assert_eq!(macs(|| conv2d(&zeros(&[2, 4, 5, 6]), &zeros(&[8, 4, 3, 3]), None, &padded)), 2 * 8 * 30 * 4 * 9);
        let depthwise = padded.groups(4).stride(2); // outputs 3 x 3
        assert_eq!(macs(|| conv2d(&zeros(&[1, 4, 5, 6]), &zeros(&[4, 1, 3, 3]), None, &depthwise)), 4 * 9 * 9);
        let grouped = ConvOptions::<1>::default().groups(2);
        assert_eq!(macs(|| conv1d(&zeros(&[1, 4, 9]), &zeros(&[6, 2, 2]), None, &grouped)), 6 * 8 * 2 * 2);
        let plain = ConvOptions::<3>::default();
        assert_eq!(macs(|| conv3d(&zeros(&[1, 2, 3, 4, 4]), &zeros(&[5, 2, 3, 1, 1]), None, &plain)), 5 * 16 * 2 * 3);
    }

    #[test]
    fn attention_counts_scores_and_mixtures() {
        let options = AttentionOptions::default();
        let (q, k, v) = (zeros(&[2, 3, 5, 4]), zeros(&[2, 3, 7, 4]), zeros(&[2, 3, 7, 6]));
        assert_eq!(macs(|| attention(&q, &k, &v, &options)), 2 * 3 * 5 * 7 * (4 + 6));
        assert_eq!(macs(|| attention_packed(&zeros(&[2, 5, 36]), 3, &options)), 2 * 3 * 5 * 5 * (4 + 4));
        assert_eq!(macs(|| attention_weights(&q, &k, &options)), 2 * 3 * 5 * 7 * 4);
    }

    #[test]
    fn scopes_nest_end_and_survive_panics() {
        let product = || matmul(&zeros(&[2, 2]), &zeros(&[2, 2])).unwrap();
        let ((inner, _), outer) = count_macs(|| {
            product();
            let (_, inner) = count_macs(product);
            (inner, product())
        });
        assert_eq!((inner, outer), (8, 24));
        assert!(std::panic::catch_unwind(|| count_macs(|| panic!("on purpose"))).is_err());
        product();
        assert_eq!(COUNT.get(), None);
        assert!(count_macs(|| matmul(&zeros(&[2, 2]), &zeros(&[3, 2]))).0.is_err());
        assert_eq!(count_macs(|| ()).1, 0);
    }

    #[test]
    fn backward_passes_do_not_count() -> Result<()> {
        let x = candle_core::Var::zeros((1, 4, 6, 6), DType::F32, &Device::Cpu)?;
        let w = candle_core::Var::zeros((4, 4, 3, 3), DType::F32, &Device::Cpu)?;
        let ys = conv2d(&x, &w, None, &ConvOptions::default())?.flatten_from(1)?;
        let ys = linear(&ys, &zeros(&[3, 64]), None, None)?;
        let ys = matmul(&ys, &zeros(&[3, 3]))?;
        let (grads, macs) = count_macs(|| ys.sum_all()?.backward());
        assert!(grads?.get(&w).is_some());
        assert_eq!(macs, 0);
        Ok(())
    }
}
