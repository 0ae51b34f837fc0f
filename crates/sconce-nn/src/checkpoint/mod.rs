//! Reading checkpoints: which tensors a file holds, and the bytes of those that are asked for.

mod element;
mod entry;
mod keymap;
mod machine;
mod numpy;
mod open;
mod pickle;
mod torch;
mod torch_tree;
mod vb;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::error::{Error, Result};
use crate::load::{LoadOptions, similar};
use entry::{Entry, Kind};
pub use keymap::{KeyMap, Source};

type Tensors = BTreeMap<String, Arc<Entry>>;

/// What a reader of one format finds.
struct Contents {
    tensors: Tensors,
    metadata: BTreeMap<String, String>,
}

/// A file of named tensors, opened and checked but not read: each tensor is read when it is asked for.
///
/// Names are those of the file, seen through [`select`](Self::select) and [`strip_prefix`](Self::strip_prefix); a
/// [`KeyMap`] translates the names of a model on request. Clones are cheap and share the file.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use sconce_nn::{Checkpoint, LoadOptions, ParamStore};
///
/// let store = ParamStore::new(0, DType::F32, &Device::Cpu);
/// // ... build a model on `store.vb()` ...
/// let checkpoint = Checkpoint::open("deit_tiny_patch16_224.pth")?.select("model")?;
/// let report = store.load(&checkpoint, &LoadOptions::default())?;
/// println!("{report}");
/// # Ok::<(), sconce_nn::Error>(())
/// ```
#[derive(Clone)]
pub struct Checkpoint {
    path: Arc<Path>,
    tensors: Arc<Tensors>,
    metadata: Arc<BTreeMap<String, String>>,
    map: Option<Arc<dyn KeyMap>>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .field("mapped", &self.map.is_some())
            .finish()
    }
}

impl Checkpoint {
    /// Opens a checkpoint; the format is told by the contents, not by the extension.
    ///
    /// - `.safetensors`, memory-mapped;
    /// - `*.index.json`: a model split over several files in the same folder;
    /// - `.pth`, `.pt`, `.bin` of `torch.save`, zip or the older form, and TorchScript archives. Nested dictionaries, lists and
    ///   modules become dotted names (`state_dict.blocks.0.norm1.weight`). No code of the file is ever run;
    /// - pickles of NumPy arrays (`.p`, `.pkl`): dictionaries of arrays in the same way, an array alone under the name `array`;
    /// - a folder that holds one of these under its usual name (`model.safetensors`, `pytorch_model.bin`, ...).
    ///
    /// The file must not be changed by others while it is open.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`] for a truncated or damaged file, [`Error::Unsupported`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        open::open(path.as_ref())
    }

    /// A checkpoint inside a buffer, in any single-file format of [`Checkpoint::open`]. `label` stands for the path in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(bytes: Vec<u8>, label: impl Into<PathBuf>) -> Result<Self> {
        let path: Arc<Path> = label.into().into();
        let contents = open::detect(&path, &(Arc::new(bytes) as entry::Bytes))?;
        Ok(Self::new(path, contents))
    }

    /// A checkpoint of tensors in memory.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let entry = |tensor: Tensor| Arc::new(Entry { shape: tensor.dims().to_vec(), kind: Kind::Memory(tensor) });
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, entry(tensor))).collect();
        Self::new(Path::new("memory").into(), Contents { tensors, metadata: BTreeMap::new() })
    }

    fn new(path: Arc<Path>, contents: Contents) -> Self {
        Self { path, tensors: Arc::new(contents.tensors), metadata: Arc::new(contents.metadata), map: None }
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names in the file, sorted, after [`select`](Self::select) and [`strip_prefix`](Self::strip_prefix) and before any
    /// [`KeyMap`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of tensors in the file.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True for a file without tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Text that comes with the tensors: the header of `.safetensors`, or the numbers and strings of a pickle under dotted
    /// names (`epoch`, `args.lr`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Keeps what lies below a key or dotted path, and shortens the names by it: `select("state_dict")`, `select("teacher.backbone")`.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`], with the keys that exist.
    pub fn select(&self, key: &str) -> Result<Self> {
        let prefix = format!("{key}.");
        let below = self.tensors.iter().filter_map(|(name, entry)| Some((name.strip_prefix(&prefix)?, entry)));
        let tensors: Tensors = below.map(|(name, entry)| (name.to_string(), entry.clone())).collect();
        if tensors.is_empty() {
            let mut found: Vec<String> = self.names().map(|n| n.split('.').next().unwrap_or(n).to_string()).collect();
            found.dedup();
            found.truncate(20);
            return Err(Error::NoSuchKey { path: self.path.to_path_buf(), key: key.to_string(), found });
        }
        Ok(Self { tensors: Arc::new(tensors), ..self.clone() })
    }

    /// [`select`](Self::select)s the first of these keys that exists; leaves the checkpoint as it is when none does.
    ///
    /// [`WRAPPERS`](Self::WRAPPERS) are the keys under which training scripts usually put the weights.
    pub fn select_first(&self, keys: &[&str]) -> Self {
        keys.iter().find_map(|key| self.select(key).ok()).unwrap_or_else(|| self.clone())
    }

    /// Keys for [`select_first`](Self::select_first), averaged and teacher weights first.
    pub const WRAPPERS: [&'static str; 8] =
        ["state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model", "net", "module"];

    /// Removes each prefix in turn from the names that have it, e.g. `["module.", "backbone."]`.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when two names become one.
    pub fn strip_prefix(&self, prefixes: &[&str]) -> Result<Self> {
        let mut tensors = Tensors::new();
        for (name, entry) in self.tensors.iter() {
            let short = prefixes.iter().fold(name.as_str(), |name, prefix| name.strip_prefix(prefix).unwrap_or(name));
            if tensors.insert(short.to_string(), entry.clone()).is_some() {
                return Err(Error::Duplicate { path: self.path.to_path_buf(), name: short.to_string() });
            }
        }
        Ok(Self { tensors: Arc::new(tensors), ..self.clone() })
    }

    /// Translates requests: from now on [`tensor`](Self::tensor), [`shape`](Self::shape), [`dtype`](Self::dtype) and
    /// [`vb`](Self::vb) take the model's names.
    pub fn with_map(&self, map: impl KeyMap + 'static) -> Self {
        Self { map: Some(Arc::new(map)), ..self.clone() }
    }

    /// True when the tensor, or all parts of it, exist.
    pub fn contains(&self, name: &str) -> bool {
        self.shape(name).is_ok()
    }

    /// Shape of a tensor, without reading it.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Shape`] when the parts of a joined tensor do not fit.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.source(name).shape(self, name)
    }

    /// Type of a tensor's elements; of the first part where a tensor is joined of several. Types that candle lacks are read
    /// into the next wider one.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Unsupported`] for complex and quantised elements.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        match self.source(name).names().first() {
            Some(first) => self.entry(first)?.dtype(),
            None => Err(self.missing(name)),
        }
    }

    /// Reads a tensor in the file's own type.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Corrupt`] when a checksum fails; [`Error::Unsupported`] for complex and quantised elements.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.source(name).tensor(self, name, device)
    }

    /// A builder that reads the tensors of this checkpoint as constants, for inference. A name that is missing or has another
    /// shape is an error; nothing is ever made up.
    pub fn vb(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.vb_with(dtype, device, &LoadOptions::default())
    }

    /// As [`vb`](Self::vb), with the resize hooks of the options.
    pub fn vb_with(&self, dtype: DType, device: &Device, options: &LoadOptions) -> VarBuilder<'static> {
        let backend = vb::Backend { checkpoint: self.clone(), options: options.clone() };
        VarBuilder::from_backend(Box::new(backend), dtype, device.clone())
    }

    /// The names in the file that a name of the model is made of.
    pub(crate) fn sources(&self, name: &str) -> Vec<String> {
        self.source(name).names().into_iter().map(str::to_string).collect()
    }

    fn source(&self, name: &str) -> Source {
        match &self.map {
            Some(map) => map.source(name),
            None => Source::Tensor(name.to_string()),
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).map(|entry| &**entry).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        Error::Missing { path: self.path.to_path_buf(), name: name.to_string(), near: similar(name, self.names()) }
    }
}
