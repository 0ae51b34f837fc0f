use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use sconce_ops::Generator;

use crate::error::{Error, Result};
use crate::init::{self, Init, Request, Role};
use crate::save::{SaveOptions, save_tensors};
use crate::{Checkpoint, LoadOptions, LoadReport, matches};

/// What an entry of a [`ParamStore`] is to training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// A parameter that receives gradients.
    Trainable,
    /// A parameter that the model keeps fixed or that was handed out by [`ParamStore::vb_fixed`]: no gradient is ever
    /// computed for it.
    Fixed,
    /// Saved and loaded but not a parameter: running statistics and the like.
    Buffer,
}

/// One entry of a [`ParamStore`]. Clones share the variable.
#[derive(Debug, Clone)]
pub struct Param {
    /// Full name, as in the official checkpoint.
    pub name: Arc<str>,
    /// The value; setting it is seen by the model.
    pub var: Var,
    /// Parameter or buffer.
    pub kind: ParamKind,
    /// Left out of [`ParamStore::parameters`] until unfrozen.
    pub frozen: bool,
}

/// Deep copies of a store's values at one moment, see [`ParamStore::snapshot`].
#[derive(Debug, Clone)]
pub struct Snapshot(Vec<(Arc<str>, Tensor)>);

impl Snapshot {
    /// Names and values in the store's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (&**name, tensor))
    }
}

/// The parameters of a model: named, ordered by creation, shared by clones.
///
/// Each parameter is drawn from a generator of its own, forked from the seed by its full name: the values depend neither on the
/// order in which layers are built nor on what else the store holds.
///
/// Patterns are those of [`matches`](crate::matches()): `*` stands for any run of characters.
///
/// ```
/// use candle_core::{DType, Device};
/// use sconce_nn::{ParamStore, linear};
///
/// let store = ParamStore::new(42, DType::F32, &Device::Cpu);
/// let _fc = linear(4, 2, store.vb().pp("head"))?;
/// assert_eq!(store.names(), ["head.weight", "head.bias"]);
/// store.freeze("*.bias")?;
/// assert_eq!(store.count_trainable(), 8);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct ParamStore(Arc<Shared>);

struct Shared {
    seed: u64,
    dtype: DType,
    device: Device,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    entries: Vec<Param>,
    by_name: HashMap<Arc<str>, usize>,
}

impl std::fmt::Debug for ParamStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParamStore")
            .field("seed", &self.0.seed)
            .field("dtype", &self.0.dtype)
            .field("device", &self.0.device)
            .field("entries", &self.read().entries.len())
            .finish()
    }
}

impl ParamStore {
    /// An empty store whose parameters will have this type and device.
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Self(Arc::new(Shared { seed, dtype, device: device.clone(), table: RwLock::default() }))
    }

    /// A builder that creates what it is asked for, or returns what exists under that name.
    pub fn vb(&self) -> VarBuilder<'static> {
        self.builder(false)
    }

    /// As [`ParamStore::vb`], for a part of the model that is never trained: its tensors share storage with the store (so that
    /// [`ParamStore::load`] reaches them) and no backward pass visits them.
    pub fn vb_fixed(&self) -> VarBuilder<'static> {
        self.builder(true)
    }

    fn builder(&self, fixed: bool) -> VarBuilder<'static> {
        let backend = Backend { store: self.clone(), fixed };
        VarBuilder::from_backend(Box::new(backend), self.0.dtype, self.0.device.clone())
    }

    /// The type given to [`ParamStore::new`].
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The device given to [`ParamStore::new`].
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The seed given to [`ParamStore::new`].
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// All names, in the order of creation.
    pub fn names(&self) -> Vec<String> {
        self.read().entries.iter().map(|p| p.name.to_string()).collect()
    }

    /// The variable of this name, parameter or buffer.
    pub fn get(&self, name: &str) -> Option<Var> {
        let table = self.read();
        table.by_name.get(name).map(|&i| table.entries[i].var.clone())
    }

    /// All entries as they are now, in the order of creation.
    pub fn iter(&self) -> impl Iterator<Item = Param> + use<> {
        self.read().entries.clone().into_iter()
    }

    /// What an optimiser steps: trainable and not frozen.
    pub fn parameters(&self) -> Vec<Param> {
        self.iter().filter(|p| p.kind == ParamKind::Trainable && !p.frozen).collect()
    }

    /// The variables of [`ParamStore::parameters`], as candle's optimisers take them.
    pub fn vars(&self) -> Vec<Var> {
        self.parameters().into_iter().map(|p| p.var).collect()
    }

    /// Running statistics and the like.
    pub fn buffers(&self) -> Vec<Param> {
        self.iter().filter(|p| p.kind == ParamKind::Buffer).collect()
    }

    /// The members of [`ParamStore::parameters`] whose name matches; empty when none does.
    pub fn group(&self, pattern: &str) -> Vec<Param> {
        self.parameters().into_iter().filter(|p| matches(pattern, &p.name)).collect()
    }

    /// Number of scalars in all parameters, frozen ones included and buffers not: the number that papers print.
    pub fn count(&self) -> usize {
        self.iter().filter(|p| p.kind != ParamKind::Buffer).map(|p| p.var.elem_count()).sum()
    }

    /// Number of scalars that training changes.
    pub fn count_trainable(&self) -> usize {
        self.parameters().iter().map(|p| p.var.elem_count()).sum()
    }

    /// Takes the matching parameters out of [`ParamStore::parameters`]; returns how many match.
    ///
    /// The backward pass still computes their gradients: where that cost matters, build the part with [`ParamStore::vb_fixed`].
    ///
    /// # Errors
    /// [`Error::NoMatch`], because a misspelt pattern would silently train what should rest.
    pub fn freeze(&self, pattern: &str) -> Result<usize> {
        self.set_frozen(pattern, true)
    }

    /// Reverses [`ParamStore::freeze`]; returns how many match.
    ///
    /// # Errors
    /// [`Error::NoMatch`], and [`Error::NotTrainable`] for parameters made by [`ParamStore::vb_fixed`].
    pub fn unfreeze(&self, pattern: &str) -> Result<usize> {
        self.set_frozen(pattern, false)
    }

    fn set_frozen(&self, pattern: &str, frozen: bool) -> Result<usize> {
        let mut table = self.write();
        let hits = |p: &&mut Param| p.kind != ParamKind::Buffer && matches(pattern, &p.name);
        if !frozen && let Some(p) = table.entries.iter_mut().filter(hits).find(|p| p.kind == ParamKind::Fixed) {
            return Err(Error::NotTrainable { name: p.name.to_string() });
        }
        let mut count = 0;
        for p in table.entries.iter_mut().filter(hits) {
            p.frozen = frozen || p.kind == ParamKind::Fixed;
            count += 1;
        }
        if count == 0 {
            let names = table.entries.iter().take(8).map(|p| p.name.to_string()).collect();
            return Err(Error::NoMatch { pattern: pattern.to_string(), names });
        }
        Ok(count)
    }

    /// Overwrites a value, converting type and device.
    ///
    /// # Errors
    /// [`Error::Missing`] for an unknown name, [`Error::Shape`] for another shape.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        let var = self.get(name).ok_or_else(|| self.missing(name))?;
        if var.dims() != value.dims() {
            return Err(Error::Shape {
                name: name.to_string(),
                expected: var.dims().to_vec(),
                found: value.dims().to_vec(),
            });
        }
        Ok(var.set(&value.to_device(var.device())?.to_dtype(var.dtype())?)?)
    }

    /// Deep copies of all values, parameters and buffers.
    ///
    /// # Errors
    /// Candle's, when the device has no room.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let copy = |p: Param| Ok((p.name, p.var.as_detached_tensor().copy()?));
        Ok(Snapshot(self.iter().map(copy).collect::<Result<_>>()?))
    }

    /// Sets every value that the snapshot holds.
    ///
    /// # Errors
    /// As [`ParamStore::set`], when the snapshot is of another model.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        snapshot.iter().try_for_each(|(name, tensor)| self.set(name, tensor))
    }

    /// Writes all values to a `.safetensors` file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &SaveOptions::default())
    }

    /// As [`ParamStore::save`], with metadata and possibly another floating-point type.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_with(&self, path: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let tensors: Vec<_> = self.iter().map(|p| (p.name.to_string(), p.var.as_detached_tensor())).collect();
        save_tensors(path, tensors, options)
    }

    /// Overwrites values with those of a checkpoint and reports what fitted.
    ///
    /// All names and shapes are compared first: when `options.strict` and the report is not clean, nothing is changed.
    ///
    /// # Errors
    /// [`Error::Load`] with the report, and the checkpoint's errors when it turns out to be damaged.
    pub fn load(&self, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadReport> {
        crate::load::load(self, checkpoint, options)
    }

    fn missing(&self, name: &str) -> Error {
        let near = crate::load::similar(name, self.read().entries.iter().map(|p| &*p.name));
        Error::Missing { path: Default::default(), name: name.to_string(), near }
    }

    // The table is consistent between any two statements, so a panic elsewhere while it was locked does no harm.
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Backend {
    store: ParamStore,
    fixed: bool,
}

impl Backend {
    fn create(
        &self,
        shape: Shape,
        name: &str,
        request: Request,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Param> {
        let generator = Generator::new(self.store.0.seed).fork(name);
        let var = Var::from_tensor(&request.init.tensor(shape, dtype, device, &generator)?)?;
        let kind = match request.role {
            Role::Buffer => ParamKind::Buffer,
            Role::Trained if !self.fixed => ParamKind::Trainable,
            Role::Trained | Role::Frozen => ParamKind::Fixed,
        };
        let mut table = self.store.write();
        if let Some(&index) = table.by_name.get(name) {
            return Ok(table.entries[index].clone()); // another thread was faster, with the same values
        }
        let param = Param { name: name.into(), var, kind, frozen: kind == ParamKind::Fixed };
        let index = table.entries.len();
        table.by_name.insert(param.name.clone(), index);
        table.entries.push(param.clone());
        Ok(param)
    }

    fn find(&self, name: &str) -> Option<Param> {
        let table = self.store.read();
        table.by_name.get(name).map(|&i| table.entries[i].clone())
    }

    fn hand_out(&self, param: &Param, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let tensor = match param.kind {
            ParamKind::Fixed => param.var.as_detached_tensor(),
            _ if self.fixed && param.kind == ParamKind::Trainable => param.var.as_detached_tensor(),
            // A buffer stays a variable: layers find it again by `Var::from_tensor`.
            _ => param.var.as_tensor().clone(),
        };
        tensor.to_device(device)?.to_dtype(dtype)
    }
}

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hint: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let request = init::take_request().unwrap_or(Request { init: Init::from(hint), role: Role::Trained });
        let param = match self.find(name) {
            Some(param) => param,
            None => self.create(shape.clone(), name, request, dtype, device)?,
        };
        if param.var.shape() != &shape {
            let found = param.var.dims().to_vec();
            return Err(Error::Shape { name: name.to_string(), expected: shape.into_dims(), found }.into());
        }
        self.hand_out(&param, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match self.find(name) {
            Some(param) => self.hand_out(&param, dtype, device),
            None => Err(self.store.missing(name).into()),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}
