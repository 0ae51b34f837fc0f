//! Golden weights under their official names, and the gradients that come back to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use sconce::nn::{KeyMap, Source};

use super::{DOUBLE, GRADIENT, OUTPUT, Result, Tensors, compare};

/// Trainable weights by official name; a model built on [`Weights::vb`] sends its gradients back to them.
#[derive(Debug, Clone)]
pub struct Weights(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vars: BTreeMap<String, Var>,
    used: Mutex<BTreeSet<String>>,
}

impl Weights {
    /// Takes the tensors whose names start with `prefix`, without it; floating ones as `dtype`.
    ///
    /// # Errors
    /// When a tensor cannot be converted.
    pub fn new(tensors: &Tensors, prefix: &str, dtype: DType) -> Result<Self> {
        let mut vars = BTreeMap::new();
        for (name, tensor) in tensors.with_prefix(prefix) {
            let dtype = if tensor.dtype().is_float() { dtype } else { tensor.dtype() };
            vars.insert(name.to_owned(), Var::from_tensor(&tensor.to_dtype(dtype)?)?);
        }
        Ok(Self(Arc::new(Inner { vars, used: Mutex::default() })))
    }

    /// A builder that finds the weights under their own names and fails on any other.
    pub fn vb(&self, dtype: DType) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, Device::Cpu)
    }

    /// As [`vb`](Self::vb) for a model that has other names than the file. Gradients still come back to the file's.
    pub fn vb_with(&self, dtype: DType, map: impl KeyMap + 'static) -> VarBuilder<'static> {
        let mapped = Mapped { weights: self.clone(), map: Box::new(map) };
        VarBuilder::from_backend(Box::new(mapped), dtype, Device::Cpu)
    }

    /// A weight by its official name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.vars.get(name)
    }

    /// Marks a weight as taken and gives it.
    ///
    /// # Errors
    /// When there is no weight of that name.
    pub fn take(&self, name: &str) -> candle_core::Result<Tensor> {
        let var =
            self.0.vars.get(name).ok_or_else(|| candle_core::Error::CannotFindTensor { path: name.into() }.bt())?;
        self.0.used.lock().unwrap_or_else(|e| e.into_inner()).insert(name.into());
        Ok(var.as_tensor().clone())
    }

    /// Floating weights that no model has asked for.
    pub fn untouched(&self) -> Vec<String> {
        let used = self.0.used.lock().unwrap_or_else(|e| e.into_inner());
        let left = self.0.vars.iter().filter(|(name, var)| var.dtype().is_float() && !used.contains(*name));
        left.map(|(name, _)| name.clone()).collect()
    }

    /// Every weight by its official name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.vars.iter().map(|(name, var)| (name.as_str(), var))
    }
}

/// Weights behind a map of names.
struct Mapped {
    weights: Weights,
    map: Box<dyn KeyMap>,
}

fn of_shape(tensor: Tensor, name: &str, expected: Shape) -> candle_core::Result<Tensor> {
    if tensor.shape() == &expected {
        return Ok(tensor);
    }
    let got = tensor.shape().clone();
    let msg = format!("shape mismatch for {name}");
    Err(candle_core::Error::UnexpectedShape { msg, expected, got }.bt())
}

impl SimpleBackend for Weights {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        of_shape(self.get_unchecked(name, dtype, dev)?, name, s)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        self.take(name)?.to_dtype(dtype)?.to_device(dev)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.vars.contains_key(name)
    }
}

impl SimpleBackend for Mapped {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        of_shape(self.get_unchecked(name, dtype, dev)?, name, s)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        let tensor = match self.map.source(name) {
            Source::Tensor(name) => self.weights.take(&name)?,
            Source::Transposed(name) => self.weights.take(&name)?.t()?,
            Source::Concat { names, dim } => {
                let parts = names.iter().map(|name| self.weights.take(name));
                Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, dim)?
            }
            other => candle_core::bail!("{name}: the map says {other:?}"),
        };
        tensor.to_dtype(dtype)?.to_device(dev)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        match self.map.source(name) {
            Source::Tensor(name) | Source::Transposed(name) => self.weights.contains_tensor(&name),
            Source::Concat { names, .. } => names.iter().all(|name| self.weights.contains_tensor(name)),
            _ => false,
        }
    }
}

/// Numbered names of the first layout: `output`, `output1`, `output2`, ...
fn numbered(stem: &str, index: usize) -> String {
    if index == 0 { stem.into() } else { format!("{stem}{index}") }
}

/// Holds the outputs against `output[,1,2,...]`, in double precision where the file has them, and wants all of them.
///
/// # Errors
/// When one differs, is missing or is too many.
pub fn check_outputs(io: &Tensors, outputs: &[Tensor]) -> Result<()> {
    known(io)?;
    let wanted = (0..).take_while(|&i| io.find(&numbered("output", i)).is_some()).count();
    if wanted != outputs.len() {
        return Err(format!("{} outputs instead of {wanted}", outputs.len()).into());
    }
    for (i, output) in outputs.iter().enumerate() {
        let name = numbered("output", i);
        let reference = io.find(&format!("{name}_f64")).map_or_else(|| io.get(&name), Ok)?;
        compare(&name, output, reference, OUTPUT)?;
    }
    Ok(())
}

/// Every tensor of the file must be one that is looked at: a kind that is not known must not pass unseen.
fn known(io: &Tensors) -> Result<()> {
    let numbered = |name: &str| {
        let name = name.strip_suffix("_f64").unwrap_or(name);
        let rest = name.strip_prefix("output").or_else(|| name.strip_prefix("cotangent"));
        rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit()))
    };
    // Masks and contexts are further inputs, which the systems that have them look for.
    let named = |name: &str| matches!(name, "input" | "mask" | "context" | "grad.input" | "grad.input_f64");
    let tapped = |name: &str| name.starts_with("grad.param.") || name.starts_with("mid.");
    match io.iter().find(|(name, _)| !numbered(name) && !named(name) && !tapped(name)) {
        Some((name, _)) => Err(format!("nothing looks at the tensor {name}").into()),
        None => Ok(()),
    }
}

/// Runs the case in double precision, where the file has it, against the reference in double precision.
///
/// # Errors
/// When an output or the gradient of the input differs.
pub fn check_double(io: &Tensors, forward: impl FnOnce(&Tensor) -> Result<Vec<Tensor>>) -> Result<()> {
    if io.find("output_f64").is_none() {
        return Ok(());
    }
    let input = Var::from_tensor(&io.get("input")?.to_dtype(DType::F64)?)?;
    let outputs = forward(&input)?;
    for (i, output) in outputs.iter().enumerate() {
        let name = format!("{}_f64", numbered("output", i));
        compare(&name, output, io.get(&name)?, DOUBLE)?;
    }
    if let Some(reference) = io.find("grad.input_f64") {
        let grads = backward(io, &outputs)?;
        compare("grad.input_f64", grads.get(&input).ok_or("the input has no gradient")?, reference, DOUBLE)?;
    }
    Ok(())
}

/// Gradients of `sum_i sum(output_i * cotangent_i)`.
///
/// # Errors
/// When a cotangent is missing or the backward pass fails.
pub fn backward(io: &Tensors, outputs: &[Tensor]) -> Result<GradStore> {
    let mut loss: Option<Tensor> = None;
    for (i, output) in outputs.iter().enumerate() {
        let cotangent = io.get(&numbered("cotangent", i))?.to_dtype(output.dtype())?;
        let term = (output * cotangent)?.sum_all()?;
        loss = Some(match loss {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    Ok(loss.ok_or("no output to take a gradient of")?.backward()?)
}

/// Holds the gradients against `grad.input` and every `grad.param.<name>`, and wants a finite gradient on every
/// floating weight except those that `idle` names.
///
/// # Errors
/// When one differs or is missing.
pub fn check_gradients(
    io: &Tensors,
    grads: &GradStore,
    input: &Tensor,
    weights: &Weights,
    idle: impl Fn(&str) -> bool,
) -> Result<()> {
    if let Some(reference) = io.find("grad.input_f64").or_else(|| io.find("grad.input")) {
        let found = grads.get(input).ok_or("the input has no gradient")?;
        compare("grad.input", found, reference, GRADIENT)?;
    }
    let rounding = ROUNDING * largest(io, "grad.")?;
    for (name, reference) in io.with_prefix("grad.param.") {
        let var = weights.get(name).ok_or_else(|| format!("grad.param.{name}: no such weight"))?;
        let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
        let vanishes = VANISHING.iter().any(|suffix| name.ends_with(suffix)) && found.shape() == reference.shape();
        if vanishes && magnitude(reference)? <= rounding && magnitude(found)? <= rounding {
            continue;
        }
        compare(&format!("grad.param.{name}"), found, reference, GRADIENT)?;
    }
    for (name, var) in weights.iter().filter(|(name, var)| var.dtype().is_float() && !idle(name)) {
        let grad = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
        let sum = grad.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        if !sum.is_finite() {
            return Err(format!("the gradient of {name} is not finite").into());
        }
    }
    Ok(())
}

/// Parameters whose gradient is zero in exact arithmetic: a softmax over the keys does not see what is added to all of them.
/// The numbers of both sides are then rounding, which nothing can be held against but its size.
const VANISHING: &[&str] = &["to_k.bias"];

/// The size of such rounding, as a share of the largest gradient of the case.
const ROUNDING: f64 = 1e-6;

/// The largest magnitude in all tensors whose names start with `prefix`.
fn largest(io: &Tensors, prefix: &str) -> Result<f64> {
    io.with_prefix(prefix).try_fold(0f64, |largest, (_, tensor)| Ok(largest.max(magnitude(tensor)?)))
}

fn magnitude(tensor: &Tensor) -> Result<f64> {
    let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    // Not a number is not small.
    Ok(values
        .iter()
        .fold(0.0, |largest: f64, v| if largest.is_nan() || v.abs() <= largest { largest } else { v.abs() }))
}
