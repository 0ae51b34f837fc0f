//! Runs any model against a case of the first layout.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use sconce::nn::{Checkpoint, KeyMap, LoadOptions, ParamStore, Source};
use sconce_tests::golden::{
    Case, OUTPUT, Result, Tensors, Weights, backward, check_double, check_gradients, check_outputs, compare,
};
use serde_json::Value;

/// What forward hooks would see: `<module>.in`, `<module>.out`, further outputs as `<module>.out1`, ...
pub(crate) type Taps = BTreeMap<String, Tensor>;

/// Runs a model on an input, in training mode when told so.
pub(crate) type Forward<M> = dyn Fn(&M, &Tensors, &Tensor, bool) -> Result<Vec<Tensor>>;

/// A model as the runner needs it.
pub(crate) struct ModelCase<'a, M> {
    /// Makes the model.
    pub build: &'a dyn Fn(VarBuilder) -> candle_core::Result<M>,
    /// The outputs in the order of the file, which may tell which ones are wanted.
    pub forward: &'a Forward<M>,
    /// The taps of a pass; only those that the file holds are compared, and all of those must be here.
    pub trace: &'a dyn Fn(&M, &Tensor, bool) -> Result<Taps>,
    /// Tensors of the file, by their names there, that the architecture does not train or has no use for.
    pub idle: &'a dyn Fn(&str) -> bool,
}

impl<M> ModelCase<'_, M> {
    /// Compares outputs, taps and gradients, outputs and input gradient in double precision, and the outputs after a
    /// strict load by the library's own way from a file. `keys` maps the model's names to the file's.
    pub(crate) fn run(&self, case: &Case, keys: Option<Keys>) -> Result<()> {
        let train = train_mode(&case.json()?)?;
        let vb = |weights: &Weights, dtype| match &keys {
            Some(keys) => weights.vb_with(dtype, keys.clone()),
            None => weights.vb(dtype),
        };
        let (io, tensors) = (case.tensors()?, case.weights()?);
        let further = ["mask", "context"].into_iter().find(|name| io.find(name).is_some());
        if let (Some(name), false) = (further, case.system == "linear_attention") {
            return Err(format!("a backbone has no use for the input {name}").into());
        }
        let input = Var::from_tensor(io.get("input")?)?;
        // In training mode a pass moves running statistics: each pass has a model of its own.
        let single = || -> Result<(M, Weights)> {
            let weights = Weights::new(&tensors, "", DType::F32)?;
            Ok(((self.build)(vb(&weights, DType::F32))?, weights))
        };
        check_taps(&io, &(self.trace)(&single()?.0, &input, train)?)?;
        let (model, weights) = single()?;
        let outputs = (self.forward)(&model, &io, &input, train)?;
        check_outputs(&io, &outputs)?;
        let untouched: Vec<_> = weights.untouched().into_iter().filter(|name| !(self.idle)(name)).collect();
        if !untouched.is_empty() {
            return Err(format!("the model has no use for {untouched:?}").into());
        }
        check_gradients(&io, &backward(&io, &outputs)?, &input, &weights, self.idle)?;

        let double = Weights::new(&tensors, "", DType::F64)?;
        let model = (self.build)(vb(&double, DType::F64))?;
        check_double(&io, |input| (self.forward)(&model, &io, input, train))?;
        self.loaded(case, &io, keys, train)
    }

    fn loaded(&self, case: &Case, io: &Tensors, keys: Option<Keys>, train: bool) -> Result<()> {
        let file = Checkpoint::open(case.path("weights.safetensors"))?;
        let file = match keys {
            Some(keys) => file.with_map(keys),
            None => file,
        };
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let model = (self.build)(store.vb())?;
        let mut options = LoadOptions::default();
        for name in case.weights()?.iter().map(|(name, _)| name).filter(|name| (self.idle)(name)) {
            if store.get(name).is_none() {
                options = options.ignore(name);
            }
        }
        store.load(&file, &options)?;
        check_outputs(io, &(self.forward)(&model, io, io.get("input")?, train)?)
    }
}

/// A shared map of names.
#[derive(Clone)]
pub(crate) struct Keys(Arc<dyn KeyMap>);

impl Keys {
    pub(crate) fn new(map: impl KeyMap + 'static) -> Self {
        Self(Arc::new(map))
    }
}

impl KeyMap for Keys {
    fn source(&self, name: &str) -> Source {
        self.0.source(name)
    }
}

/// Whether the case was run in training mode.
pub(crate) fn train_mode(json: &Value) -> Result<bool> {
    match json.get("mode").and_then(Value::as_str) {
        None | Some("eval") => Ok(false),
        Some("train") => Ok(true),
        Some(other) => Err(format!("mode `{other}` is neither eval nor train").into()),
    }
}

/// Holds every `mid.*` of the file against the trace.
pub(crate) fn check_taps(io: &Tensors, taps: &Taps) -> Result<()> {
    for (name, reference) in io.with_prefix("mid.") {
        let found = taps.get(name).ok_or_else(|| format!("mid.{name}: the model has no such module"))?;
        compare(&format!("mid.{name}"), found, reference, OUTPUT)?;
    }
    Ok(())
}
