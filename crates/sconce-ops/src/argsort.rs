//! Sorting indices.

use candle_core::{Device, Result, Tensor};
use num_traits::Float;

use crate::{
    check,
    kernel::{Element, Rows, cpu_slice, fill, parallel::rows_per_block},
    with_float,
};

/// The indices (u32) that sort the last dimension. Stable: equal elements stay in order, ascending and descending alike.
/// NaN comes last in both.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the type is not floating-point or there is no dimension.
pub fn argsort(xs: &Tensor, descending: bool) -> Result<Tensor> {
    let op = "argsort";
    check::float(op, xs)?;
    let n = check::last_dim(op, xs)?;
    cpu(op, xs, n, descending)
}

/// Sorts on the CPU, whatever the device: order is not arithmetic, and the result must not depend on the device.
fn cpu(op: &'static str, xs: &Tensor, n: usize, descending: bool) -> Result<Tensor> {
    let host = xs.to_device(&Device::Cpu)?;
    let (storage, layout) = host.storage_and_layout();
    let indices = with_float!(xs.dtype(), op, T => {
        let rows = Rows::<T>::last(cpu_slice(&storage)?, layout);
        // About n log n comparisons, each dearer than an element read.
        let work = n * (usize::BITS - n.leading_zeros()) as usize;
        let (indices, _) = fill(rows.count(), n, rows_per_block(work), |range, out| {
            let mut scratch = Vec::new();
            let start = range.start;
            (out.rows(n, |i, out| sort_row(rows.get(start + i, &mut scratch), out.fill(0), descending)), ())
        });
        Ok::<_, candle_core::Error>(indices)
    })?;
    Tensor::from_vec(indices, xs.shape(), xs.device())
}

fn sort_row<'a, T: Element>(row: &[T], indices: &'a mut [u32], descending: bool) -> &'a mut [u32] {
    for (i, index) in (0..).zip(indices.iter_mut()) {
        *index = i;
    }
    let key = |i: u32| row[i as usize].widen();
    indices.sort_by(|&a, &b| {
        let (x, y) = (key(a), key(b));
        let order = if descending { y.partial_cmp(&x) } else { x.partial_cmp(&y) };
        order.unwrap_or_else(|| x.is_nan().cmp(&y.is_nan()))
    });
    indices
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, strided};

    #[test]
    fn ties_keep_their_order_and_nan_is_last() -> Result<()> {
        let x = Tensor::new(&[2f32, f32::NAN, -0., 0., 2., f32::NEG_INFINITY], &Device::Cpu)?;
        assert_eq!(argsort(&x, false)?.to_vec1::<u32>()?, [5, 2, 3, 0, 4, 1]);
        assert_eq!(argsort(&x, true)?.to_vec1::<u32>()?, [0, 4, 2, 3, 5, 1]);
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused_and_empty_input_is_not() -> Result<()> {
        let dev = Device::Cpu;
        assert!(argsort(&Tensor::new(1f32, &dev)?, false).is_err());
        assert!(argsort(&Tensor::new(&[1u8], &dev)?, false).is_err());
        for shape in [(0, 3), (3, 0)] {
            assert_eq!(argsort(&Tensor::zeros(shape, DType::F32, &dev)?, true)?.elem_count(), 0);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn gathers_into_order(seed: u64, descending: bool) {
            let mut draw = Draw::new(seed);
            let shape = draw.shape(1..=3, 1..=40);
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let x = strided(&mut draw, &shape, dtype).unwrap();
            let indices = argsort(&x, descending).unwrap().contiguous().unwrap();
            let x = x.contiguous().unwrap();
            let sorted = x.gather(&indices, shape.len() - 1).unwrap().to_dtype(DType::F64).unwrap();
            let (sorted, indices) = (sorted.flatten_all().unwrap(), indices.flatten_all().unwrap());
            let n = shape[shape.len() - 1];
            let (sorted, indices) = (sorted.to_vec1::<f64>().unwrap(), indices.to_vec1::<u32>().unwrap());
            for (row, ids) in sorted.chunks(n).zip(indices.chunks(n)) {
                for i in 1..n {
                    let (a, b) = if descending { (row[i], row[i - 1]) } else { (row[i - 1], row[i]) };
                    prop_assert!(a < b || a == b && ids[i - 1] < ids[i]);
                }
            }
        }
    }
}
