//! The stack machine of a pickle.

use std::borrow::Cow;
use std::collections::HashMap;

use super::pickle::{Id, Object, Pickle, Value};

/// More values than any checkpoint holds; bounds the memory that a hostile file can ask for to some hundred megabytes.
const MAX_VALUES: usize = 1 << 23;

/// The stack, the marks on it, and what was stored for later; all refer to values by number.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Step<T = ()> = Result<T, String>;

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }
    }

    pub(super) fn run(mut self) -> Step<Pickle<'a>> {
        loop {
            let at = self.at;
            let opcode = self.byte()?;
            if opcode == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { values: self.values, root, consumed: self.at });
            }
            self.step(opcode).map_err(|reason| format!("pickle, byte {at}: {reason}"))?;
        }
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("the pickle ends {} bytes early", count - (self.bytes.len() - self.at)))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Step<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn sized(&mut self, width: usize) -> Step<&'a [u8]> {
        let mut length = [0; 8];
        length[..width].copy_from_slice(self.take(width)?);
        self.take(usize::try_from(u64::from_le_bytes(length)).map_err(|_| "a length overflows")?)
    }

    fn data(&mut self, width: usize) -> Step {
        let length = self.sized(width)?.len();
        self.push(Value::Bytes(self.at - length..self.at))
    }

    fn line(&mut self) -> Step<Cow<'a, str>> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or("a line has no end")?;
        self.at += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]))
    }

    fn add(&mut self, value: Value<'a>) -> Step<Id> {
        if self.values.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.values.push(value);
        Ok((self.values.len() - 1) as Id)
    }

    fn push_id(&mut self, id: Id) -> Step {
        if self.stack.len() >= MAX_VALUES {
            return Err("the stack is too high".into());
        }
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Step {
        let id = self.add(value)?;
        self.push_id(id)
    }

    fn text(&mut self, bytes: &'a [u8]) -> Step {
        self.push(Value::Text(String::from_utf8_lossy(bytes)))
    }

    fn pop(&mut self) -> Step<Id> {
        // What lies below the last mark is not the current operation's.
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return Err("takes a mark for a value".into());
        }
        self.stack.pop().ok_or_else(|| "takes a value from an empty stack".into())
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn pop_pairs(&mut self) -> Step<Vec<(Id, Id)>> {
        let items = self.pop_to_mark()?;
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without value".into()) };
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    }

    fn top(&mut self) -> Step<&mut Value<'a>> {
        let id = *self.stack.last().ok_or("takes a value from an empty stack")?;
        Ok(&mut self.values[id as usize])
    }

    fn put(&mut self, key: u32) -> Step {
        let id = *self.stack.last().ok_or("stores nothing")?;
        if self.memo.len() >= MAX_VALUES {
            return Err("too many stored values".into());
        }
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Step {
        let id = *self.memo.get(&key).ok_or_else(|| format!("value {key} was never stored"))?;
        self.push_id(id)
    }

    fn extend_list(&mut self, more: Vec<Id>) -> Step {
        match self.top()? {
            Value::List(list) => list.extend(more),
            Value::Object(object) => object.list.extend(more),
            _ => return Err("appends to something that is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, more: Vec<(Id, Id)>) -> Step {
        match self.top()? {
            Value::Dict(items) => items.extend(more),
            Value::Object(object) => object.items.extend(more),
            _ => return Err("sets an item of something that is no dictionary".into()),
        }
        Ok(())
    }

    fn call(&mut self) -> Step {
        let (args, class) = (self.pop()?, self.pop()?);
        self.push(Value::Object(Box::new(Object { class, args, items: Vec::new(), list: Vec::new(), state: None })))
    }

    fn build(&mut self) -> Step {
        let state = self.pop()?;
        // Attributes of a plain value are dropped: a checkpoint needs none.
        if let Value::Object(object) = self.top()? {
            object.state = Some(state);
        }
        Ok(())
    }

    fn long(&mut self, bytes: &'a [u8]) -> Step {
        if bytes.len() > 8 {
            return self.push(Value::Long(bytes));
        }
        let negative = bytes.last().is_some_and(|&b| b >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn tuple(&mut self, count: usize) -> Step {
        let mut items = (0..count).map(|_| self.pop()).collect::<Step<Vec<_>>>()?;
        items.reverse();
        self.push(Value::Tuple(items))
    }

    /// One opcode; names and numbers are those of Python's `pickletools`.
    fn step(&mut self, opcode: u8) -> Step {
        match opcode {
            // PROTO, FRAME: framing carries no data.
            0x80 => match self.byte()? {
                2..=5 => Ok(()),
                version => Err(format!("protocol {version} is not one of 2 to 5")),
            },
            0x95 => self.take(8).map(|_| ()),
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                if self.marks.len() >= MAX_VALUES {
                    return Err("too many marks".into());
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
                Ok(())
            }
            b'0' => self.pop().map(|_| ()),
            b'1' => self.pop_to_mark().map(|_| ()),
            b'2' => {
                let id = *self.stack.last().ok_or("copies nothing")?;
                self.push_id(id)
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))
            }
            b'K' => {
                let n = self.byte()?;
                self.push(Value::Int(n.into()))
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))
            }
            0x8a => {
                let bytes = self.sized(1)?;
                self.long(bytes)
            }
            0x8b => {
                let bytes = self.sized(4)?;
                self.long(bytes)
            }
            b'G' => {
                let x = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(x))
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8; SHORT_BINSTRING and BINSTRING are Python 2's text
            0x8c | b'U' => {
                let bytes = self.sized(1)?;
                self.text(bytes)
            }
            b'X' | b'T' => {
                let bytes = self.sized(4)?;
                self.text(bytes)
            }
            0x8d => {
                let bytes = self.sized(8)?;
                self.text(bytes)
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => self.data(1),
            b'B' => self.data(4),
            0x8e | 0x96 => self.data(8),
            // EMPTY_TUPLE, TUPLE, TUPLE1 to TUPLE3
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))
            }
            0x85..=0x87 => self.tuple(usize::from(opcode - 0x84)),
            // EMPTY_LIST, LIST, APPEND, APPENDS; EMPTY_SET, ADDITEMS, FROZENSET
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)
            }
            // EMPTY_DICT, DICT, SETITEM, SETITEMS
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_pairs()?;
                self.push(Value::Dict(items))
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(vec![(key, value)])
            }
            b'u' => {
                let items = self.pop_pairs()?;
                self.extend_dict(items)
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let key = self.byte()?;
                self.put(key.into())
            }
            b'r' => {
                let key = self.u32()?;
                self.put(key)
            }
            0x94 => self.put(self.memo.len() as u32),
            b'h' => {
                let key = self.byte()?;
                self.recall(key.into())
            }
            b'j' => {
                let key = self.u32()?;
                self.recall(key)
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let (module, name) = (self.add(Value::Text(module))?, self.add(Value::Text(name))?);
                self.push(Value::Global(module, name))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                self.push(Value::Global(module, name))
            }
            // REDUCE, NEWOBJ, NEWOBJ_EX, BUILD
            b'R' | 0x81 => self.call(),
            0x92 => self.pop().and_then(|_| self.call()),
            b'b' => self.build(),
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            other => Err(format!("opcode 0x{other:02x} is not read")),
        }
    }
}
