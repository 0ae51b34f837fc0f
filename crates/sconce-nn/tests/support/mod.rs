//! Writers of torch files for tests, opcode by opcode.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// An uncompressed zip archive.
pub(crate) fn zip(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, data) in records {
        writer.start_file(name.to_string(), options).unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A pickle under construction, protocol 2.
#[derive(Default)]
pub(crate) struct Pickler(pub(crate) Vec<u8>);

impl Pickler {
    pub(crate) fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub(crate) fn op(mut self, opcodes: &[u8]) -> Self {
        self.0.extend(opcodes);
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    pub(crate) fn int(self, n: i64) -> Self {
        self.op(&[0x8a, 8]).op(&n.to_le_bytes())
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.op(b"c").op(format!("{module}\n{name}\n").as_bytes())
    }

    pub(crate) fn ints(self, numbers: &[i64]) -> Self {
        numbers.iter().fold(self.op(b"("), |pickle, &n| pickle.int(n)).op(b"t")
    }

    /// As torch's C++ pickler writes it.
    pub(crate) fn tensor(self, class: &str, key: &str, len: i64, offset: i64, size: &[i64], stride: &[i64]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .text("storage")
            .global("torch", class)
            .text(key)
            .text("cpu")
            .int(len)
            .op(b"tQ")
            .int(offset)
            .ints(size)
            .ints(stride)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    /// `{name: <what f pickles>}`
    pub(crate) fn entry(self, name: &str, f: impl FnOnce(Self) -> Self) -> Self {
        f(self.op(b"}").text(name)).op(b"s")
    }

    /// An object of TorchScript with these attributes.
    pub(crate) fn script_object(self, class: &str, attributes: impl FnOnce(Self) -> Self) -> Self {
        attributes(self.global("__torch__.model", class).op(b")\x81}(")).op(b"ub")
    }

    pub(crate) fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// A torch archive of one pickle and its storages.
pub(crate) fn archive(pickle: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    let names: Vec<String> = (0..storages.len()).map(|i| format!("archive/data/{i}")).collect();
    let mut records = vec![("archive/data.pkl", pickle)];
    records.extend(names.iter().map(String::as_str).zip(storages.iter().copied()));
    zip(&records)
}

pub(crate) fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// `{"w": tensor}` over 6 stored floats 0..6.
pub(crate) fn one_tensor(offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    let pickle = Pickler::new().entry("w", |p| p.tensor("FloatStorage", "0", 6, offset, size, stride)).stop();
    archive(&pickle, &[&floats((0..6).map(|i| i as f32))])
}

/// A TorchScript archive: a module with a child, two parameters, a number and compiled code beside them.
pub(crate) fn torch_script() -> Vec<u8> {
    let pickle = Pickler::new()
        .script_object("Net", |p| {
            p.text("training")
                .op(b"\x88")
                .text("logit_scale")
                .tensor("FloatStorage", "0", 1, 0, &[], &[])
                .text("visual")
                .script_object("Tower", |p| {
                    p.text("input_resolution")
                        .int(224)
                        .text("proj")
                        .tensor("HalfStorage", "1", 4, 0, &[2, 2], &[2, 1])
                        .text("hook")
                        .op(b"N")
                })
        })
        .stop();
    zip(&[
        ("net/version", b"3\n"),
        ("net/data.pkl", &pickle),
        ("net/data/0", &floats([4.5])),
        ("net/data/1", &[0, 0x3c, 0, 0x40, 0, 0x42, 0, 0x44]),
        ("net/code/__torch__/model.py", b"class Net(Module):\n"),
        ("net/constants.pkl", b"\x80\x02)."),
    ])
}
