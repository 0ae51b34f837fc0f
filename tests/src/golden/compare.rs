//! How near is near enough.

use candle_core::{DType, Tensor};

use super::Result;

/// `|y - reference| <= relative * max|reference| + absolute`.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Share of the largest magnitude in the reference.
    pub relative: f64,
    /// Added to it.
    pub absolute: f64,
}

/// For outputs and for taps inside a model.
pub const OUTPUT: Tolerance = Tolerance { relative: 1e-4, absolute: 1e-5 };

/// For what is computed in double precision on both sides. It leaves room for references that round to single precision on
/// the way, as Hugging Face's do, and none for a layer norm's epsilon of 1e-6 in place of 1e-12.
pub const DOUBLE: Tolerance = Tolerance { relative: 1e-6, absolute: 1e-12 };

/// For gradients: a share of the largest alone.
pub const GRADIENT: Tolerance = Tolerance { relative: 5e-4, absolute: 0.0 };

/// Holds `found` against `reference`: equal shapes, finite, and within the tolerance everywhere.
///
/// # Errors
/// Says what differs, by how much, where, and what was allowed.
pub fn compare(what: &str, found: &Tensor, reference: &Tensor, tolerance: Tolerance) -> Result<()> {
    let (found, wanted) = (values(what, found, reference)?, values(what, reference, reference)?);
    let largest = wanted.iter().fold(0f64, |m, v| m.max(v.abs()));
    let allowed = tolerance.relative * largest + tolerance.absolute;
    // A NaN is not near anything, hence "not near" and not "far".
    let near = |f: f64, w: f64| (f - w).abs() <= allowed;
    let count = found.iter().zip(&wanted).filter(|(f, w)| !near(**f, **w)).count();
    if count == 0 {
        return Ok(());
    }
    let error = |i: &usize| (found[*i] - wanted[*i]).abs();
    let worst = (0..found.len()).find(|i| error(i).is_nan());
    let worst = worst.or_else(|| (0..found.len()).max_by(|a, b| error(a).total_cmp(&error(b)))).unwrap_or(0);
    Err(format!(
        "{what} {:?}: {count} of {} values differ by more than {allowed:.3e}; at {worst} found {} instead of {}",
        reference.dims(),
        found.len(),
        found[worst],
        wanted[worst]
    )
    .into())
}

/// Holds `found` against `reference` without any tolerance: ids, masks, hashes, pixels.
///
/// # Errors
/// Says what differs and where.
pub fn equal(what: &str, found: &Tensor, reference: &Tensor) -> Result<()> {
    compare(what, found, reference, Tolerance { relative: 0.0, absolute: 0.0 })
}

fn values(what: &str, tensor: &Tensor, reference: &Tensor) -> Result<Vec<f64>> {
    if tensor.dims() != reference.dims() {
        return Err(format!("{what}: shape {:?} instead of {:?}", tensor.dims(), reference.dims()).into());
    }
    Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn differences_are_measured_against_the_largest_reference() {
        let reference = tensor(&[1.0, -100.0]);
        assert!(compare("x", &tensor(&[1.009, -100.0]), &reference, OUTPUT).is_ok());
        assert!(compare("x", &tensor(&[1.011, -100.0]), &reference, OUTPUT).is_err());
        assert!(equal("x", &tensor(&[1.0, -100.0]), &reference).is_ok());
        assert!(equal("x", &tensor(&[1.0, -99.99]), &reference).is_err());
    }

    #[test]
    fn not_a_number_and_other_shapes_never_pass() {
        let reference = tensor(&[1.0, 2.0]);
        let message = compare("x", &tensor(&[1.0, f32::NAN]), &reference, OUTPUT).unwrap_err().to_string();
        assert!(message.contains("at 1 found NaN"), "{message}");
        assert!(compare("x", &tensor(&[f32::INFINITY, 2.0]), &reference, OUTPUT).is_err());
        assert!(compare("x", &tensor(&[1.0]), &reference, OUTPUT).is_err());
    }
}
