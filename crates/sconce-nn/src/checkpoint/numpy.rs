//! Pickles of NumPy arrays (`.p`, `.pkl`), as MindSpore's converters and many scripts write them.
//!
//! An array is a call of `_reconstruct` whose result is given its shape, its type and its bytes; since protocol 5 also of
//! `_frombuffer`. Nothing is called here: the bytes are used where they lie in the file.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::element::Element;
use super::entry::{Bytes, Entry, Layout, Storage, row_major};
use super::pickle::{Id, Object, Pickle, Value};
use super::torch_tree::Tree;
use super::{Contents, Tensors};
use crate::error::{Error, Result};

const MAX_AXES: usize = 64;

/// An array as the pickle describes it.
#[derive(Debug)]
pub(crate) struct ArrayRecord {
    element: Element,
    big_endian: bool,
    shape: Vec<usize>,
    fortran: bool,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// Bytes of the pickle.
    Inside(Range<usize>),
    /// Protocol 2 knows no bytes: they were written as text, a character for each.
    Copied(Vec<u8>),
}

impl ArrayRecord {
    /// Bytes that the record takes beside the file.
    pub(crate) fn copied(&self) -> usize {
        match &self.data {
            Data::Inside(_) => 0,
            Data::Copied(bytes) => bytes.len(),
        }
    }
}

/// Whether a function makes an array or a scalar; NumPy 2 moved them below `_core`.
pub(crate) fn is_array(module: &str, name: &str) -> bool {
    match module {
        "numpy.core.multiarray" | "numpy._core.multiarray" => matches!(name, "_reconstruct" | "scalar"),
        "numpy.core.numeric" | "numpy._core.numeric" => name == "_frombuffer",
        _ => false,
    }
}

/// The array that the call of `function` would have made.
pub(crate) fn array(pickle: &Pickle, function: &str, object: &Object) -> std::result::Result<ArrayRecord, String> {
    let args = pickle.sequence(object.args).unwrap_or_default();
    let parts = match (function, args) {
        ("scalar", &[dtype, data]) => (None, dtype, false, data),
        ("_frombuffer", &[data, dtype, shape, order]) => {
            let fortran = match pickle.text(order) {
                Some("C") => false,
                Some("F") => true,
                _ => return Err("an order that is neither C nor F".into()),
            };
            (Some(shape), dtype, fortran, data)
        }
        ("_reconstruct", _) => {
            let state = object.state.and_then(|state| pickle.sequence(state));
            let Some(&[.., shape, dtype, fortran, data]) = state else { return Err("it has no contents".into()) };
            let Value::Bool(fortran) = pickle.get(fortran) else { return Err("its order is no flag".into()) };
            (Some(shape), dtype, *fortran, data)
        }
        _ => return Err(format!("{function} has other arguments")),
    };
    let (shape, dtype, fortran, data) = parts;
    let shape = match shape {
        Some(shape) => axes(pickle, shape).ok_or("its shape is malformed")?,
        None => vec![],
    };
    let (element, big_endian) = element(pickle, dtype).ok_or("its type is malformed")?;
    let data = match bytes(pickle, data) {
        Some(data) => data,
        // Objects and the like have no bytes; that they cannot be read is said when they are asked for.
        None if element.size().is_none() => Data::Inside(0..0),
        None => return Err("its data are no bytes".into()),
    };
    Ok(ArrayRecord { element, big_endian, shape, fortran, data })
}

fn axes(pickle: &Pickle, id: Id) -> Option<Vec<usize>> {
    let axes = pickle.sequence(id).filter(|axes| axes.len() <= MAX_AXES)?;
    axes.iter().map(|&n| pickle.index(n)).collect()
}

/// `dtype('f4', ..)` with the byte order in its state.
fn element(pickle: &Pickle, id: Id) -> Option<(Element, bool)> {
    let Value::Object(object) = pickle.get(id) else { return None };
    let Some(("numpy", "dtype")) = pickle.global(object.class) else {
        return Some((Element::Other("a type that is not NumPy's own"), false));
    };
    let code = pickle.text(*pickle.sequence(object.args)?.first()?)?;
    let order = match object.state.and_then(|state| pickle.sequence(state)) {
        Some(&[_, order, ..]) => pickle.text(order)?,
        _ => "|",
    };
    Some((Element::from_numpy(code), order == ">"))
}

fn bytes(pickle: &Pickle, id: Id) -> Option<Data> {
    match pickle.get(id) {
        Value::Bytes(range) => Some(Data::Inside(range.clone())),
        Value::Object(object) if pickle.global(object.class) == Some(("_codecs", "encode")) => {
            let &[text, code] = pickle.sequence(object.args)? else { return None };
            let text = pickle.text(text).filter(|_| pickle.text(code) == Some("latin1"))?;
            text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<u8>>>().map(Data::Copied)
        }
        // Python's way to write no bytes at all in protocol 2.
        Value::Object(object) => match pickle.global(object.class)? {
            ("__builtin__" | "builtins", "bytes") => Some(Data::Copied(vec![])),
            _ => None,
        },
        _ => None,
    }
}

/// A file that is one pickle, which lies at its start.
pub(super) fn open(path: &Arc<Path>, file: &Bytes, pickle: &Pickle) -> Result<Contents> {
    let tree = Tree::of(pickle).map_err(|reason| Error::corrupt(path, reason))?;
    if tree.arrays.is_empty() {
        return Err(Error::unsupported(path, "a Python pickle that torch.save did not write, without NumPy arrays"));
    }
    let mut tensors = Tensors::new();
    for (name, record) in tree.arrays {
        let (file, range): (Bytes, _) = match record.data {
            Data::Inside(range) => (file.clone(), range),
            Data::Copied(bytes) => {
                let range = 0..bytes.len();
                (Arc::new(bytes), range)
            }
        };
        let big_endian = record.big_endian;
        let storage = Storage { path: path.clone(), file, range, big_endian, crc: None, sound: OnceLock::new() };
        let strides = strides(&record.shape, record.fortran);
        let elements = record.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let wanted = record.element.size().map(|size| elements.and_then(|n| n.checked_mul(size)));
        let (Some(strides), true) = (strides, wanted.is_none_or(|bytes| bytes == Some(storage.range.len()))) else {
            let (shape, held) = (&record.shape, storage.range.len());
            return Err(Error::corrupt(path, format!("array `{name}` of shape {shape:?} has {held} bytes")));
        };
        let entry = Entry::strided(record.shape, record.element, Arc::new(storage), Layout { offset: 0, strides })?;
        if tensors.insert(name.clone(), Arc::new(entry)).is_some() {
            return Err(Error::Duplicate { path: path.to_path_buf(), name });
        }
    }
    Ok(Contents { tensors, metadata: tree.scalars })
}

/// Steps along each axis; `None` when the element count overflows.
fn strides(shape: &[usize], fortran: bool) -> Option<Vec<usize>> {
    if !fortran {
        return row_major(shape);
    }
    let reversed: Vec<usize> = shape.iter().rev().copied().collect();
    let mut strides = row_major(&reversed)?;
    strides.reverse();
    Some(strides)
}
