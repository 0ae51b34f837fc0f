//! Norms on low-variance input, where a wrong epsilon or a wrong GELU shows.

use candle_core::{D, Tensor};
use sconce::ops;
use sconce_tests::golden::{Case, OUTPUT, Result, Tensors, compare};

pub(crate) fn run(case: &Case) -> Result<()> {
    let io = case.tensors()?;
    for (name, reference) in io.iter().filter(|(name, _)| !INPUTS.contains(name)) {
        compare(name, &probe(&io, name)?, reference, OUTPUT)?;
    }
    Ok(())
}

const INPUTS: &[&str] = &["x", "weight", "bias", "running_mean", "running_var", "gelu_in"];

/// The probe is named after the function and its epsilon.
fn probe(io: &Tensors, name: &str) -> Result<Tensor> {
    let epsilon = |text: &str| text.parse::<f64>().map_err(|e| format!("{name}: epsilon `{text}`: {e}"));
    let affine = || Ok::<_, sconce_tests::golden::Error>((io.get("x")?, io.get("weight")?, io.get("bias")?));
    Ok(match name {
        "gelu_erf" => ops::gelu(io.get("gelu_in")?)?,
        "gelu_tanh" => ops::gelu_tanh(io.get("gelu_in")?)?,
        _ if name.starts_with("layer_norm_eps") => {
            let (x, weight, bias) = affine()?;
            let eps = epsilon(&name["layer_norm_eps".len()..])?;
            ops::layer_norm(x, Some(weight), Some(bias), eps)?
        }
        _ if name.starts_with("batch_norm_eval_eps") => {
            let (x, weight, bias) = affine()?;
            let eps = epsilon(&name["batch_norm_eval_eps".len()..])?;
            let rows = x.flatten_to(D::Minus2)?; // (*, C)
            let (mean, var) = (io.get("running_mean")?, io.get("running_var")?);
            ops::batch_norm(&rows, Some(weight), Some(bias), mean, var, eps)?.reshape(x.shape())?
        }
        _ if name.starts_with("cxv_layer_norm_std_plus_") => {
            let (x, weight, bias) = affine()?;
            std_norm(x, weight, bias, epsilon(&name["cxv_layer_norm_std_plus_".len()..])?)?
        }
        _ => return Err(format!("no probe is called {name}").into()),
    })
}

/// The norm of CXV, which adds epsilon to the (biased) standard deviation. By the library's parts: centre, unit variance
/// by a norm without epsilon, then the ratio of the deviations.
fn std_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let std = centred.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
    Ok(centred.broadcast_div(&(std + eps)?)?.broadcast_mul(weight)?.broadcast_add(bias)?)
}
