//! Sorting indices.

use candle_core::{Device, Result, Tensor};

use crate::{
    check,
    kernel::{Element, Real, Rows, Uninit, cpu_slice, fill, parallel::rows_per_block},
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
        // About n log n comparisons, each dearer than reading an element.
        let block = rows_per_block(n * (usize::BITS - n.leading_zeros()) as usize);
        let (indices, _) = fill(rows.count(), n, block, |range, out| {
            let mut scratch = Vec::new();
            let xs = rows.load(range, &mut scratch);
            let mut keys = Vec::with_capacity(n);
            (out.rows(n, |i, out| sort_row(&xs[i * n..(i + 1) * n], out, &mut keys, descending)), ())
        });
        Ok::<_, candle_core::Error>(indices)
    })?;
    Tensor::from_vec(indices, xs.shape(), xs.device())
}

/// Sorts whole numbers that hold a key above and the index below, which is faster than comparing through indices and stable
/// because no two are equal.
fn sort_row<'a, T: Element>(row: &[T], out: Uninit<'a, u32>, keys: &mut Vec<u128>, descending: bool) -> &'a mut [u32] {
    keys.clear();
    keys.extend(row.iter().zip(0u32..).map(|(x, i)| u128::from(key(x.widen(), descending)) << 32 | u128::from(i)));
    keys.sort_unstable();
    out.map(keys, |key| key as u32)
}

/// A whole number that orders as the float does; both zeros are equal, NaN is largest.
fn key<A: Real>(x: A, descending: bool) -> u64 {
    if x.is_nan() {
        return u64::MAX;
    }
    let bits = (x.to_f64() + 0.).to_bits();
    let ascending = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    if descending { !ascending } else { ascending }
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
