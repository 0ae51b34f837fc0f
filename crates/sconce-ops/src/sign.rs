//! The sign, with a gradient that passes straight through.

use candle_core::{Result, Tensor};

use crate::check;

/// The sign of each element, +1 also for both zeros, with the straight-through estimator (Bengio et al. 2013) for a
/// gradient: that of the identity. NaN gives -1.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the type is not floating-point.
pub fn sign_ste(xs: &Tensor) -> Result<Tensor> {
    check::float("sign_ste", xs)?;
    reference(xs)
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor) -> Result<Tensor> {
    let x = xs.detach();
    let sign = ((x.ge(0.)?.to_dtype(xs.dtype())? * 2.)? - 1.)?;
    // x - x has the value 0 and the gradient of x; where x is infinite it would be NaN, so x is emptied there first.
    let finite = x.abs()?.lt(f64::INFINITY)?;
    let zero = x.zeros_like()?;
    let difference = (xs - finite.where_cond(&x, &zero)?)?;
    sign + difference
}
