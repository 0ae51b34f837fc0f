//! Cross entropy of logits against class numbers.

use candle_core::{D, DType, Result, Tensor};

use crate::{Error, check, softmax};

/// Mean cross entropy of `softmax(logits)` against classes, with label smoothing (Szegedy et al. 2016): the target is
/// `1 - smoothing` on the class plus `smoothing / K` on every class.
///
/// # Shapes
/// - `logits`: `(B, K)`; `targets`: `(B)` u32, below `K`
/// - output: `()`
///
/// # Errors
/// When shapes or types do not fit, the batch is empty, a target is not a class, or the smoothing is outside `[0, 1]`.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let op = "cross_entropy";
    check::float(op, logits)?;
    let &[b, k] = logits.dims() else {
        return Err(Error::shape(op, "logits", "(B, K)", logits.shape()).into());
    };
    if b == 0 || k == 0 {
        return Err(Error::shape(op, "logits", "(B, K), not empty", logits.shape()).into());
    }
    if targets.dims() != [b] {
        return Err(Error::shape(op, "targets", format!("({b})"), targets.shape()).into());
    }
    if targets.dtype() != DType::U32 {
        return Err(Error::dtype(op, "targets", "u32", targets.dtype()).into());
    }
    if !(0. ..=1.).contains(&label_smoothing) {
        let expected = "a number from 0 to 1";
        return Err(Error::value(op, "label_smoothing", expected, label_smoothing).into());
    }
    if let Some(class) = targets.to_vec1::<u32>()?.into_iter().find(|&class| class as usize >= k) {
        return Err(Error::value(op, "targets", format!("classes below {k}"), class).into());
    }
    reference(logits, targets, label_smoothing)
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    let wide = logits.to_dtype(check::wide(logits.dtype()))?;
    let log_p = softmax::reference_log(&wide, 1)?;
    let on_target = log_p.gather(&targets.unsqueeze(1)?, D::Minus1)?.mean_all()?;
    let loss = (on_target * (smoothing - 1.))?;
    let loss = match smoothing > 0. {
        true => (loss - (log_p.mean_all()? * smoothing)?)?,
        false => loss,
    };
    loss.to_dtype(logits.dtype())
}
