//! A reader of Python pickles that only ever builds data.
//!
//! A pickle is a program for a small stack machine; run by Python it may call anything. Here a class or function is a name,
//! and calling it records the call as an inert [`Value::Object`]. Values live in one arena and refer to each other by number,
//! so shared and cyclic structures cost nothing, need no recursion, and are freed at once.

use std::borrow::Cow;

use super::machine::Machine;

/// Number of a value in its [`Pickle`].
pub(crate) type Id = u32;

#[derive(Debug)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 8 bytes, little-endian two's complement.
    Long(&'a [u8]),
    Float(f64),
    Text(Cow<'a, str>),
    /// Where bytes lie in the pickle.
    Bytes(std::ops::Range<usize>),
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function: module and name, both texts.
    Global(Id, Id),
    /// A reference to something outside of the pickle: torch's storages.
    Persistent(Id),
    Object(Box<Object>),
}

/// A call that Python would have made, and what was put into its result afterwards.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) class: Id,
    pub(crate) args: Id,
    pub(crate) items: Vec<(Id, Id)>,
    pub(crate) list: Vec<Id>,
    pub(crate) state: Option<Id>,
}

/// A decoded pickle.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub(crate) root: Id,
    /// Bytes that the pickle took; another may follow.
    pub(crate) consumed: usize,
}

impl<'a> Pickle<'a> {
    /// Decodes the first pickle in `bytes`, protocols 2 to 5. The error is the first broken rule.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, String> {
        Machine::new(bytes).run()
    }

    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        // Ids come from `Machine::add` of the same arena only.
        &self.values[id as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn index(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id) {
            Value::Global(module, name) => Some((self.text(*module)?, self.text(*name)?)),
            _ => None,
        }
    }
}
