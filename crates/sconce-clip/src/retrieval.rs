//! The nearest neighbours of queries in a gallery of features.

use crate::{Result, normalize};
use candle_core::{DType, Tensor};
use sconce_ops::matmul;

/// The `k` entries of the gallery with the largest cosine similarity to each query, the best first, ties by place.
///
/// # Shapes
/// queries `(Q, E)`, gallery `(N, E)`, normalised or not; `Q` rows of `min(k, N)` places and similarities
///
/// # Errors
/// When the widths differ.
pub fn retrieve(queries: &Tensor, gallery: &Tensor, k: usize) -> Result<Vec<Vec<(usize, f32)>>> {
    best(&matmul(&normalize(queries)?, &normalize(gallery)?.t()?)?, k)
}

/// The `k` largest of each row, with their places.
pub(crate) fn best(scores: &Tensor, k: usize) -> Result<Vec<Vec<(usize, f32)>>> {
    let rows = scores.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let top = |row: Vec<f32>| {
        let mut places: Vec<(usize, f32)> = row.into_iter().enumerate().collect();
        let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if k < places.len() {
            places.select_nth_unstable_by(k, order);
            places.truncate(k);
        }
        places.sort_unstable_by(order);
        places
    };
    Ok(rows.into_iter().map(top).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn nearest_first() -> Result<()> {
        let gallery = Tensor::new(&[[1f32, 0.0], [0.0, 2.0], [3.0, 3.0], [0.0, 1.0]], &Device::Cpu)?;
        let queries = Tensor::new(&[[0f32, 5.0], [1.0, 0.1]], &Device::Cpu)?;
        let places = |k| -> Result<Vec<Vec<usize>>> {
            Ok(retrieve(&queries, &gallery, k)?
                .into_iter()
                .map(|row| row.into_iter().map(|(i, _)| i).collect())
                .collect())
        };
        assert_eq!(places(3)?, [[1, 3, 2], [0, 2, 1]]);
        assert_eq!(places(9)?[0].len(), 4);
        assert!(places(0)?.iter().all(Vec::is_empty));
        Ok(())
    }
}
