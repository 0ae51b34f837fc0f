//! From a decoded pickle to named tensors: what `torch.save` and TorchScript make of dictionaries, modules and tensors.

use std::collections::BTreeMap;

use super::element::Element;
use super::numpy::{self, ArrayRecord};
use super::pickle::{Id, Object, Pickle, Value};

/// Deeper than any model; the walk is recursive.
const MAX_DEPTH: usize = 128;
/// Longer than any parameter's name.
const MAX_NAME: usize = 4096;
const MAX_AXES: usize = 64;

/// A tensor as the pickle describes it, before its storage is looked up.
#[derive(Debug)]
pub(crate) struct TensorRecord {
    pub(crate) storage: StorageRecord,
    pub(crate) element: Element,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// A storage as a persistent id describes it.
#[derive(Debug, Clone)]
pub(crate) struct StorageRecord {
    pub(crate) key: String,
    pub(crate) element: Element,
    /// First element inside the storage, other than 0 for views in old files.
    pub(crate) offset: usize,
    /// Number of elements.
    pub(crate) len: usize,
}

/// All tensors of a pickle under dotted names, and its scalars as text.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) tensors: Vec<(String, TensorRecord)>,
    pub(crate) scalars: BTreeMap<String, String>,
    /// Arrays of NumPy; beside torch's tensors they are a training script's notes.
    pub(crate) arrays: Vec<(String, ArrayRecord)>,
}

impl Tree {
    /// Walks dictionaries, lists, and the attributes of objects of any class.
    pub(crate) fn of(pickle: &Pickle) -> Result<Self, String> {
        let mut walk = Walk {
            pickle,
            tree: Self::default(),
            path: String::new(),
            open: Vec::new(),
            visits: 2 * pickle.len() + 1024,
            text: pickle.consumed.saturating_mul(64).saturating_add(1 << 20),
        };
        walk.value(pickle.root)?;
        Ok(walk.tree)
    }
}

struct Walk<'a> {
    pickle: &'a Pickle<'a>,
    tree: Tree,
    path: String,
    /// Values being visited: a cycle is not followed.
    open: Vec<Id>,
    /// Shared values are visited once per way that leads to them; these two bound how much that can multiply.
    visits: usize,
    text: usize,
}

impl Walk<'_> {
    fn value(&mut self, id: Id) -> Result<(), String> {
        self.visits = self.visits.checked_sub(1).ok_or("values are shared too often")?;
        if self.open.contains(&id) {
            return Ok(());
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        self.open.push(id);
        let pickle = self.pickle;
        match pickle.get(id) {
            Value::Dict(items) => self.items(items)?,
            Value::List(items) | Value::Tuple(items) => self.sequence(items)?,
            Value::Object(object) => self.object(object)?,
            Value::Bool(b) => self.scalar(b)?,
            Value::Int(n) => self.scalar(n)?,
            Value::Float(x) => self.scalar(x)?,
            Value::Text(text) => self.scalar(text)?,
            Value::None | Value::Long(_) | Value::Bytes(_) | Value::Global(..) | Value::Persistent(_) => {}
        }
        self.open.pop();
        Ok(())
    }

    fn named(&mut self, key: &str, id: Id) -> Result<(), String> {
        let length = self.path.len();
        if length + 1 + key.len() > MAX_NAME {
            return Err(format!("a name is longer than {MAX_NAME} bytes"));
        }
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        self.value(id)?;
        self.path.truncate(length);
        Ok(())
    }

    fn items(&mut self, items: &[(Id, Id)]) -> Result<(), String> {
        let pickle = self.pickle;
        for &(key, value) in items {
            match pickle.get(key) {
                Value::Text(key) => self.named(key, value)?,
                Value::Int(n) => self.named(&n.to_string(), value)?,
                _ => {} // no name can be made of other keys
            }
        }
        Ok(())
    }

    fn sequence(&mut self, items: &[Id]) -> Result<(), String> {
        items.iter().enumerate().try_for_each(|(i, &id)| self.named(&i.to_string(), id))
    }

    fn object(&mut self, object: &Object) -> Result<(), String> {
        let pickle = self.pickle;
        match pickle.global(object.class) {
            Some(("collections", "OrderedDict" | "defaultdict")) => {
                // Python 2 passed the pairs as an argument. The state holds version numbers of modules.
                for &argument in pickle.sequence(object.args).unwrap_or_default() {
                    for &pair in pickle.sequence(argument).unwrap_or_default() {
                        if let Some(&[key, value]) = pickle.sequence(pair) {
                            self.items(&[(key, value)])?;
                        }
                    }
                }
                return self.items(&object.items);
            }
            Some(("torch._utils", name)) if name.starts_with("_rebuild_parameter") => {
                let data = pickle.sequence(object.args).and_then(|args| args.first());
                return data.map_or(Ok(()), |&data| self.value(data));
            }
            Some(("torch._tensor", "_rebuild_from_type_v2")) => {
                return match pickle.sequence(object.args) {
                    Some(&[function, _class, args, ..]) => {
                        self.object(&Object { class: function, args, items: Vec::new(), list: Vec::new(), state: None })
                    }
                    _ => Err("_rebuild_from_type_v2 lacks arguments".into()),
                };
            }
            Some(("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3")) => {
                let record =
                    tensor(pickle, object.args).ok_or_else(|| format!("tensor `{}` is malformed", self.path))?;
                let name = if self.path.is_empty() { "tensor".to_string() } else { self.path.clone() };
                self.spend(name.len())?;
                self.tree.tensors.push((name, record));
                return Ok(());
            }
            Some((module, name)) if numpy::is_array(module, name) => {
                let record = numpy::array(pickle, name, object);
                let record = record.map_err(|reason| format!("array `{}`: {reason}", self.path))?;
                let name = if self.path.is_empty() { "array".to_string() } else { self.path.clone() };
                self.spend(name.len() + record.copied())?;
                self.tree.arrays.push((name, record));
                return Ok(());
            }
            _ => {}
        }
        // A module or any other object: its attributes, under its own name.
        self.items(&object.items)?;
        self.sequence(&object.list)?;
        match object.state.map(|state| pickle.get(state)) {
            Some(Value::Dict(state)) => self.attributes(state),
            // `__slots__`: a pair of dictionaries.
            Some(Value::Tuple(parts)) => parts.iter().try_for_each(|&part| match pickle.get(part) {
                Value::Dict(state) => self.attributes(state),
                _ => Ok(()),
            }),
            _ => Ok(()),
        }
    }

    /// A pickled `torch.nn.Module` keeps its children in three dictionaries that are no part of their names.
    fn attributes(&mut self, state: &[(Id, Id)]) -> Result<(), String> {
        let pickle = self.pickle;
        for &(key, value) in state {
            match pickle.text(key) {
                Some("_parameters" | "_buffers" | "_modules") => self.value(value)?,
                _ => self.items(&[(key, value)])?,
            }
        }
        Ok(())
    }

    fn scalar(&mut self, value: &impl ToString) -> Result<(), String> {
        if self.path.is_empty() {
            return Ok(());
        }
        let value = value.to_string();
        self.spend(self.path.len() + value.len())?;
        self.tree.scalars.insert(self.path.clone(), value);
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.text = self.text.checked_sub(bytes).ok_or("names take more room than the file")?;
        Ok(())
    }
}

/// The arguments of `_rebuild_tensor*`: storage, offset, size, strides, and for v3 the dtype in seventh place.
fn tensor(pickle: &Pickle, args: Id) -> Option<TensorRecord> {
    let args = pickle.sequence(args)?;
    let &[storage, offset, size, strides, ..] = args else { return None };
    let Value::Persistent(id) = pickle.get(storage) else { return None };
    let storage = storage_record(pickle, *id)?;
    let element = match args.get(6).and_then(|&dtype| pickle.global(dtype)) {
        Some(("torch", dtype)) => Element::from_torch(dtype),
        _ => storage.element,
    };
    let axes = |id| {
        let axes = pickle.sequence(id).filter(|axes| axes.len() <= MAX_AXES)?;
        axes.iter().map(|&n| pickle.index(n)).collect::<Option<Vec<_>>>()
    };
    let offset = pickle.index(offset)?.checked_add(storage.offset)?;
    Some(TensorRecord { storage, element, offset, shape: axes(size)?, strides: axes(strides)? })
}

/// `('storage', class, key, device, elements[, view])`.
fn storage_record(pickle: &Pickle, id: Id) -> Option<StorageRecord> {
    let parts = pickle.sequence(id)?;
    let &[tag, class, key, _device, len, ref view @ ..] = parts else { return None };
    if pickle.text(tag) != Some("storage") {
        return None;
    }
    let (_, class) = pickle.global(class)?;
    let key = match pickle.get(key) {
        Value::Text(key) if key.len() <= MAX_NAME => key.to_string(),
        Value::Int(key) => key.to_string(),
        _ => return None,
    };
    // Files older than torch 0.4 share storages by views: `(key of the view, offset, length)`.
    let offset = match view.first().and_then(|&view| pickle.sequence(view)) {
        Some(&[_, offset, _]) => pickle.index(offset)?,
        _ => 0,
    };
    Some(StorageRecord { key, element: Element::from_torch(class), offset, len: pickle.index(len)? })
}

/// Every storage that a pickle refers to, also those of tensors that were not named.
pub(crate) fn storages(pickle: &Pickle) -> BTreeMap<String, StorageRecord> {
    let ids = (0..pickle.len() as Id).filter_map(|id| match pickle.get(id) {
        Value::Persistent(id) => storage_record(pickle, *id),
        _ => None,
    });
    ids.map(|record| (record.key.clone(), record)).collect()
}
