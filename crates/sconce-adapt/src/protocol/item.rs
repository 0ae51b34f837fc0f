//! Pictures with labels, in CoOp's split files and in class folders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use sconce_data::ImageFolder;
use serde::{Deserialize, Serialize};

use super::ProtocolError;
use crate::{Error, Result};

/// Names of missing files that an error lists.
const LISTED: usize = 5;

/// A picture: its path below the data set's root, its label and the name of its class. In JSON `["path", 0, "name"]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(String, u32, String)", into = "(String, u32, String)")]
pub struct Item {
    /// Path below the root, with `/` between folders.
    pub path: String,
    /// Index into the class names.
    pub label: u32,
    /// Name of the class.
    pub class: String,
}

impl From<(String, u32, String)> for Item {
    fn from((path, label, class): (String, u32, String)) -> Self {
        Self { path, label, class }
    }
}

impl From<Item> for (String, u32, String) {
    fn from(item: Item) -> Self {
        (item.path, item.label, item.class)
    }
}

/// The labels of pictures.
pub fn labels(items: &[Item]) -> Vec<u32> {
    items.iter().map(|item| item.label).collect()
}

/// The class names by label.
///
/// # Errors
/// [`ProtocolError::Empty`]; [`ProtocolError::TwoNames`] for a label with two names; [`ProtocolError::LabelGap`]. One name for
/// two labels is allowed: CoOp's list for ImageNet has such pairs.
pub fn class_names<'a>(items: impl IntoIterator<Item = &'a Item>) -> Result<Vec<String>> {
    let mut names = BTreeMap::<u32, &str>::new();
    for Item { label, class, .. } in items {
        let first = *names.entry(*label).or_insert(class);
        if first != class {
            let (first, second) = (first.to_owned(), class.clone());
            return Err(ProtocolError::TwoNames { label: *label, first, second }.into());
        }
    }
    let Some((&last, _)) = names.last_key_value() else {
        return Err(ProtocolError::Empty { what: "the list".into() }.into());
    };
    match names.keys().zip(0..).find(|(label, wanted)| **label != *wanted) {
        Some((_, missing)) => Err(ProtocolError::LabelGap { missing, last }.into()),
        None => Ok(names.into_values().map(str::to_owned).collect()),
    }
}

/// The file of a picture.
///
/// # Errors
/// [`ProtocolError::LeavesRoot`] for a path that is absolute or has `..` in it. Links inside the root are followed.
pub fn resolve(root: &Path, item: &Item) -> Result<PathBuf> {
    let path = Path::new(&item.path);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || item.path.is_empty() {
        return Err(ProtocolError::LeavesRoot { path: item.path.clone() }.into());
    }
    Ok(root.join(path))
}

/// Checks that every picture is a file below `root`.
///
/// # Errors
/// [`ProtocolError::MissingFiles`] with the first names; as [`resolve`].
pub fn check_files<'a>(root: &Path, items: impl IntoIterator<Item = &'a Item>) -> Result<()> {
    let (mut count, mut first) = (0, Vec::new());
    for item in items {
        if !resolve(root, item)?.is_file() {
            count += 1;
            if first.len() < LISTED {
                first.push(item.path.clone());
            }
        }
    }
    match count {
        0 => Ok(()),
        _ => Err(ProtocolError::MissingFiles { root: root.to_owned(), count, first }.into()),
    }
}

/// The pictures of `root/class/**/*.png`, classes numbered in the order of their folders' names.
///
/// # Errors
/// As [`ImageFolder::open`]: no class folder, one without pictures; [`ProtocolError::NotUtf8`].
pub fn class_folders(root: &Path) -> Result<Vec<Item>> {
    let folder = ImageFolder::open(root)?;
    let item = |(path, label): &(PathBuf, u32)| {
        let inside = path.strip_prefix(root).unwrap_or(path);
        let part = |part: Component| part.as_os_str().to_str().map(str::to_owned);
        let parts: Option<Vec<String>> = inside.components().map(part).collect();
        let path = parts.ok_or_else(|| ProtocolError::NotUtf8 { path: path.clone() })?.join("/");
        let class = folder.classes().get(*label as usize).cloned().unwrap_or_default();
        Ok(Item { path, label: *label, class })
    };
    folder.files().iter().map(item).collect()
}

/// The three parts of a data set, as in CoOp's `split_zhou_<Name>.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Few-shot pictures are drawn from these.
    pub train: Vec<Item>,
    /// Pictures to choose hyper-parameters with; may be empty.
    #[serde(default)]
    pub val: Vec<Item>,
    /// Pictures to evaluate on.
    pub test: Vec<Item>,
}

impl Split {
    /// Reads and checks a split file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], and those of [`Split::classes`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let split: Self =
            serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })?;
        split.classes()?;
        Ok(split)
    }

    /// Writes the split in CoOp's form, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Split::classes`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.classes()?;
        sconce_nn::fs::write_atomic(path, |out| Ok(serde_json::to_writer(out, self)?))
            .map_err(|source| Error::Io { path: path.to_owned(), source })
    }

    /// All pictures: training, validation, test.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.train.iter().chain(&self.val).chain(&self.test)
    }

    /// The class names by label.
    ///
    /// # Errors
    /// As [`class_names`] over all parts; [`ProtocolError::LeavesRoot`]; [`ProtocolError::EmptyClass`] for a class that has
    /// nothing to be trained on; [`ProtocolError::Empty`] without test pictures. A part may lack classes otherwise.
    pub fn classes(&self) -> Result<Vec<String>> {
        let names = class_names(self.items())?;
        self.items().try_for_each(|item| resolve(Path::new(""), item).map(drop))?;
        let trained: BTreeSet<u32> = self.train.iter().map(|item| item.label).collect();
        if let Some((label, class)) = (0..).zip(&names).find(|(label, _)| !trained.contains(label)) {
            let (class, what) = (class.clone(), "the training part".into());
            return Err(ProtocolError::EmptyClass { label, class, what }.into());
        }
        match self.test.is_empty() {
            true => Err(ProtocolError::Empty { what: "the test part".into() }.into()),
            false => Ok(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(path: &str, label: u32, class: &str) -> Item {
        Item { path: path.into(), label, class: class.into() }
    }

    fn protocol<T: std::fmt::Debug>(found: Result<T>) -> ProtocolError {
        match found {
            Err(Error::Protocol(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_split_file_has_coops_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("split_zhou_Pets.json");
        let text = r#"{"train": [["a/1.jpg", 0, "beagle"], ["b/1.jpg", 1, "pug"]], "val": [["b/2.jpg", 1, "pug"]],
            "test": [["a/2.jpg", 0, "beagle"]]}"#;
        std::fs::write(&path, text).unwrap();
        let split = Split::read(&path).unwrap();
        assert_eq!(split.val, [item("b/2.jpg", 1, "pug")]);
        assert_eq!(split.classes().unwrap(), ["beagle", "pug"]);
        split.write(&path).unwrap();
        assert_eq!(Split::read(&path).unwrap(), split);
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(written["train"][1], serde_json::json!(["b/1.jpg", 1, "pug"]));
    }

    #[test]
    fn what_is_wrong_with_a_split_is_named() {
        let good =
            Split { train: vec![item("1", 0, "a"), item("2", 1, "b")], val: vec![], test: vec![item("3", 1, "b")] };
        good.classes().unwrap();
        let changed = |change: &dyn Fn(&mut Split)| {
            let mut split = good.clone();
            change(&mut split);
            protocol(split.classes())
        };
        assert!(matches!(
            changed(&|split| split.test[0].class = "c".into()),
            ProtocolError::TwoNames { label: 1, first, second } if (first.as_str(), second.as_str()) == ("b", "c")
        ));
        assert!(matches!(
            changed(&|split| split.test.push(item("4", 4_000_000_000, "z"))),
            ProtocolError::LabelGap { missing: 2, last: 4_000_000_000 }
        ));
        assert!(matches!(
            changed(&|split| split.test.push(item("4", 2, "c"))),
            ProtocolError::EmptyClass { label: 2, class, .. } if class == "c"
        ));
        assert!(matches!(changed(&|split| split.test.clear()), ProtocolError::Empty { .. }));
        for path in ["../3", "a/../../3", "/etc/passwd", ""] {
            let found = changed(&|split| split.test[0].path = path.into());
            assert!(matches!(found, ProtocolError::LeavesRoot { path: told } if told == path));
        }
    }

    #[test]
    fn json_that_is_no_split_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("split.json");
        for text in ["", "{}", r#"{"train": [["a", -1, "a"]], "test": []}"#, r#"{"train": [["a", 1]], "test": []}"#] {
            std::fs::write(&path, text).unwrap();
            let error = Split::read(&path).unwrap_err();
            assert!(matches!(error, Error::Json { .. }) && error.to_string().contains("split.json"), "{error}");
        }
        assert!(matches!(Split::read(folder.path().join("none.json")), Err(Error::Io { .. })));
    }

    #[test]
    fn folders_are_classes_and_missing_pictures_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in ["dog/deep/1.png", "dog/2.png", "cat/1.jpg"] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let items = class_folders(root).unwrap();
        let expected = [item("cat/1.jpg", 0, "cat"), item("dog/2.png", 1, "dog"), item("dog/deep/1.png", 1, "dog")];
        assert_eq!(items, expected);
        check_files(root, &items).unwrap();
        std::fs::remove_file(root.join("dog/2.png")).unwrap();
        let error = check_files(root, &items).unwrap_err();
        assert!(error.to_string().contains("dog/2.png"), "{error}");
        let many: Vec<Item> = (0..9).map(|i| item(&format!("none/{i}.png"), 0, "x")).collect();
        let error = protocol(check_files(root, &many));
        assert!(matches!(&error, ProtocolError::MissingFiles { count: 9, first, .. } if first.len() == 5));
        assert!(error.to_string().ends_with("none/4.png, ..."), "{error}");
        std::fs::create_dir(root.join("empty")).unwrap();
        assert!(class_folders(root).unwrap_err().to_string().contains("empty"));
    }
}
