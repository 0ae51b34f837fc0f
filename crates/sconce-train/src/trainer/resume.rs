//! What a training leaves behind, and how it goes on from there.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;

use super::Trainer;
use crate::checkpoint::{Section, TrainingState};
use crate::{Error, Optimizer, OptimizerState, Result};

const MODEL: &str = "model";
const OPTIMIZER: &str = "optimizer";
const EMA: &str = "ema";
const LAYERS: &str = "layers";

impl<O: Optimizer> Trainer<O> {
    /// Everything that later steps depend on.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn state(&self) -> Result<TrainingState> {
        let mut sections = BTreeMap::new();
        let named = |param: sconce_nn::Param| (param.name.to_string(), param.var.as_detached_tensor());
        let model = self.store.iter().map(named).collect();
        sections.insert(MODEL.to_owned(), Section { kind: None, tensors: model });
        let OptimizerState { kind, tensors } = self.optimizer.state()?;
        sections.insert(OPTIMIZER.to_owned(), Section { kind: Some(kind), tensors });
        if let Some((ema, _)) = &self.ema {
            sections.insert(EMA.to_owned(), Section { kind: None, tensors: ema.state()? });
        }
        Ok(TrainingState {
            position: self.position,
            sections,
            generators: BTreeMap::from([(LAYERS.to_owned(), self.generator.state())]),
            metadata: self.metadata.clone(),
        })
    }

    /// Saves a checkpoint now, if there is a folder for them.
    ///
    /// # Errors
    /// Those of [`CheckpointFolder::save`](crate::CheckpointFolder::save).
    pub fn save(&self) -> Result<()> {
        if let Some((folder, _)) = &self.checkpoints {
            let path = folder.save(&self.state()?)?;
            tracing::info!("saved {}", path.display());
        }
        Ok(())
    }

    /// Continues from the latest checkpoint of the folder, if there is one, and tells whether there is.
    /// Logs lose what was written after that checkpoint.
    ///
    /// # Errors
    /// A damaged checkpoint, or one of another model, optimiser or configuration. The training is then
    /// as it was.
    pub fn resume(&mut self) -> Result<bool> {
        let state = match &self.checkpoints {
            Some((folder, _)) => folder.load_latest(self.store.device())?,
            None => None,
        };
        if let Some(state) = &state {
            self.restore(state)?;
        }
        let step = self.position.step;
        self.logs.iter_mut().try_for_each(|log| log.rewind(step))?;
        Ok(state.is_some())
    }

    /// Puts everything where a state was taken.
    ///
    /// # Errors
    /// A state of another model, optimiser or configuration. The training is then as it was.
    pub fn restore(&mut self, state: &TrainingState) -> Result<()> {
        let model = &state.section(MODEL)?.tensors;
        let mut found: HashMap<&str, &Tensor> = model.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let mut values = Vec::with_capacity(model.len());
        for param in self.store.iter() {
            let Some(value) = found.remove(&*param.name) else {
                return Err(Error::MissingTensor { section: MODEL.to_owned(), name: param.name.to_string() });
            };
            Error::check_tensor(MODEL, &param.name, &param.var, value)?;
            values.push((param.var, value));
        }
        if let Some(name) = found.into_keys().min() {
            return Err(Error::UnexpectedTensor { section: MODEL.to_owned(), name: name.to_owned() });
        }
        let whole = || "the checkpoint".to_owned();
        let Some(layers) = state.generators.get(LAYERS) else {
            return Err(Error::MissingTensor { section: whole(), name: format!("generator {LAYERS}") });
        };
        let known = |name: &str| [MODEL, OPTIMIZER].contains(&name) || (name == EMA && self.ema.is_some());
        if let Some(name) = state.sections.keys().find(|name| !known(name)) {
            return Err(Error::UnexpectedTensor { section: whole(), name: format!("section {name}") });
        }
        let average = if self.ema.is_some() { Some(state.section(EMA)?) } else { None };

        let Section { kind, tensors } = state.section(OPTIMIZER)?.clone();
        let before = self.optimizer.state()?;
        self.optimizer.load_state(&OptimizerState { kind: kind.unwrap_or_default(), tensors })?;
        if let (Some((ema, _)), Some(average)) = (&mut self.ema, average)
            && let Err(error) = ema.load_state(&average.tensors)
        {
            self.optimizer.load_state(&before)?;
            return Err(error);
        }
        for (var, value) in values {
            var.set(value)?;
        }
        self.generator.restore(layers);
        self.position = state.position;
        self.metadata.clone_from(&state.metadata);
        Ok(())
    }
}
