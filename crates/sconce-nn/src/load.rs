use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::{Checkpoint, ParamStore, matches};

/// Offers another tensor for one whose shape does not fit: `(name, tensor of the file, wanted shape)`.
type ResizeHook = Arc<dyn Fn(&str, &Tensor, &[usize]) -> candle_core::Result<Option<Tensor>> + Send + Sync>;

/// What a load tolerates and how it adapts.
#[derive(Clone)]
pub struct LoadOptions {
    /// Refuse, and change nothing, when anything is missing, unexpected or mismatched (default).
    pub strict: bool,
    /// Patterns of names that are never reported, on either side. Default: `*num_batches_tracked` and `*position_ids`,
    /// bookkeeping of PyTorch modules that no layer here has.
    pub ignore: Vec<String>,
    hooks: Vec<ResizeHook>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { strict: true, ignore: vec!["*num_batches_tracked".into(), "*position_ids".into()], hooks: Vec::new() }
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("strict", &self.strict)
            .field("ignore", &self.ignore)
            .field("hooks", &self.hooks.len())
            .finish()
    }
}

impl LoadOptions {
    /// Report differences instead of refusing them.
    pub fn lenient() -> Self {
        Self { strict: false, ..Self::default() }
    }

    /// Adds a pattern of names that may be missing, left over or of another shape (a new head, for example).
    pub fn ignore(mut self, pattern: impl Into<String>) -> Self {
        self.ignore.push(pattern.into());
        self
    }

    /// Adds a closure that is asked when a shape does not fit, e.g. to resample position embeddings. The first that returns a
    /// tensor of the wanted shape decides.
    pub fn resize(
        mut self,
        hook: impl Fn(&str, &Tensor, &[usize]) -> candle_core::Result<Option<Tensor>> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.push(Arc::new(hook));
        self
    }

    fn ignores(&self, name: &str) -> bool {
        self.ignore.iter().any(|pattern| matches(pattern, name))
    }

    pub(crate) fn resized(&self, name: &str, tensor: &Tensor, wanted: &[usize]) -> Result<Option<Tensor>> {
        for hook in &self.hooks {
            if let Some(tensor) = hook(name, tensor, wanted)?
                && tensor.dims() == wanted
            {
                return Ok(Some(tensor));
            }
        }
        Ok(None)
    }

    pub(crate) fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }
}

/// A tensor whose shape in the file is not that of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The model's name for it.
    pub name: String,
    /// The model's shape.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

/// What a load did and did not do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Set from the file.
    pub loaded: Vec<String>,
    /// Those of `loaded` that a resize hook adapted.
    pub resized: Vec<String>,
    /// In the model, not in the file: kept as they were.
    pub missing: Vec<String>,
    /// In the file, not in the model.
    pub unexpected: Vec<String>,
    /// In both with different shapes: kept as they were.
    pub mismatched: Vec<Mismatch>,
}

impl LoadReport {
    /// True when the file and the model have the same tensors.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loaded {} tensors", self.loaded.len())?;
        if !self.resized.is_empty() {
            write!(f, ", {} of them resized", self.resized.len())?;
        }
        list(f, "missing from the file", self.missing.len(), self.missing.iter())?;
        list(f, "unexpected in the file", self.unexpected.len(), self.unexpected.iter())?;
        let mismatched =
            self.mismatched.iter().map(|m| format!("{}: expected {:?}, found {:?}", m.name, m.expected, m.found));
        list(f, "of another shape", self.mismatched.len(), mismatched)
    }
}

fn list(f: &mut fmt::Formatter<'_>, what: &str, count: usize, items: impl Iterator<Item: fmt::Display>) -> fmt::Result {
    const SHOWN: usize = 20;
    if count == 0 {
        return Ok(());
    }
    write!(f, "\n{count} {what}:")?;
    for item in items.take(SHOWN) {
        write!(f, "\n  {item}")?;
    }
    if count > SHOWN { write!(f, "\n  ... and {} more", count - SHOWN) } else { Ok(()) }
}

pub(crate) fn load(store: &ParamStore, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadReport> {
    let mut report = LoadReport::default();
    let mut used = HashSet::new();
    let mut plan = Vec::new();
    for param in store.iter() {
        let name = &*param.name;
        let wanted = param.var.dims();
        used.extend(checkpoint.sources(name));
        let found = match checkpoint.shape(name) {
            Ok(shape) => shape,
            Err(Error::Missing { .. }) => {
                if !options.ignores(name) {
                    report.missing.push(name.to_string());
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        if found == wanted {
            plan.push((param, None));
            continue;
        }
        let resized = match options.has_hooks() {
            true => options.resized(name, &checkpoint.tensor(name, store.device())?, wanted)?,
            false => None,
        };
        match resized {
            Some(tensor) => plan.push((param, Some(tensor))),
            None if options.ignores(name) => {}
            None => report.mismatched.push(Mismatch { name: name.to_string(), expected: wanted.to_vec(), found }),
        }
    }
    report.unexpected =
        checkpoint.names().filter(|n| !used.contains(*n) && !options.ignores(n)).map(str::to_string).collect();
    if options.strict && !report.is_clean() {
        return Err(Error::Load(Box::new(report)));
    }
    for (param, resized) in plan {
        let tensor = match &resized {
            Some(tensor) => tensor.clone(),
            None => checkpoint.tensor(&param.name, store.device())?,
        };
        store.set(&param.name, &tensor)?;
        if resized.is_some() {
            report.resized.push(param.name.to_string());
        }
        report.loaded.push(param.name.to_string());
    }
    Ok(report)
}

/// Up to three names that share the most with the one asked for: its last parts, or its beginning.
pub(crate) fn similar<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let score = |other: &str| {
        let tail = name.rsplit('.').zip(other.rsplit('.')).take_while(|(a, b)| a == b).count();
        let head = name.split('.').zip(other.split('.')).take_while(|(a, b)| a == b).count();
        tail.max(head)
    };
    let mut scored: Vec<_> = names.map(|n| (score(n), n)).filter(|(s, _)| *s > 0).collect();
    scored.sort_by_key(|(s, n)| (std::cmp::Reverse(*s), n.len()));
    scored.into_iter().take(3).map(|(_, n)| n.to_string()).collect()
}
