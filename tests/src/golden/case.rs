//! Where the cases are.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, Result, Tensors};

/// One case of one system.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name of the folder under the golden folder: `vit`, `clip`, ...
    pub system: String,
    /// Name within the system; equal to the system where its folder is the only case.
    pub name: String,
    folder: PathBuf,
    stem: Option<String>,
}

/// The golden folder: `SCONCE_GOLDEN_DIR`, or the small tier.
pub fn folder() -> PathBuf {
    std::env::var_os("SCONCE_GOLDEN_DIR").map_or_else(small_tier, PathBuf::from)
}

/// The goldens that are kept beside these tests.
pub fn small_tier() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Every case under `root`, ordered by system and name.
///
/// # Errors
/// When a folder cannot be read.
pub fn discover(root: &Path) -> Result<Vec<Case>> {
    let mut cases = vec![];
    for system in sorted(root)? {
        if system.is_dir() {
            let name = file_name(&system)?;
            cases.extend(cases_of(&name, &system)?);
        }
    }
    Ok(cases)
}

fn cases_of(system: &str, folder: &Path) -> Result<Vec<Case>> {
    let case = |name: &str, folder: &Path, stem: Option<&str>| Case {
        system: system.into(),
        name: name.into(),
        folder: folder.into(),
        stem: stem.map(str::to_owned),
    };
    if folder.join("io.safetensors").is_file() {
        return Ok(vec![case(system, folder, None)]);
    }
    let mut cases: Vec<Case> = vec![];
    for path in sorted(folder)? {
        let extension = path.extension().and_then(|e| e.to_str());
        if path.is_dir() {
            cases.push(case(&file_name(&path)?, &path, None));
        } else if matches!(extension, Some("json" | "safetensors")) {
            let name = file_name(&path.with_extension(""))?;
            // The other file of the pair comes right after in the order of names, or not at all.
            if cases.iter().all(|c| c.name != name) {
                cases.push(case(&name, folder, Some(&name)));
            }
        }
    }
    Ok(cases)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| at(folder, e))?;
    let mut paths =
        entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().map_err(|e| at(folder, e))?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|n| n.to_str());
    Ok(name.ok_or_else(|| format!("{}: not a UTF-8 name", path.display()))?.to_owned())
}

fn at(path: &Path, error: impl std::fmt::Display) -> Error {
    format!("{}: {error}", path.display()).into()
}

impl Case {
    /// `system/name`, the name of the test.
    pub fn id(&self) -> String {
        if self.name == self.system { self.name.clone() } else { format!("{}/{}", self.system, self.name) }
    }

    /// Another case of the same system; it need not exist.
    pub fn sibling(&self, name: &str) -> Case {
        match self.stem {
            Some(_) => Case { name: name.into(), stem: Some(name.into()), ..self.clone() },
            None => Case { name: name.into(), folder: self.folder.with_file_name(name), ..self.clone() },
        }
    }

    /// A file in the case's folder by its name.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// `<case>.<extension>`: the files of the second layout.
    pub fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.stem.as_deref().unwrap_or(&self.name)))
    }

    fn json_path(&self) -> PathBuf {
        if self.stem.is_some() { self.file("json") } else { self.path("config.json") }
    }

    /// The whole of `config.json` or `<case>.json`.
    ///
    /// # Errors
    /// When the file is missing or is not JSON.
    pub fn json(&self) -> Result<Value> {
        let path = self.json_path();
        let text = std::fs::read_to_string(&path).map_err(|e| at(&path, e))?;
        serde_json::from_str(&text).map_err(|e| at(&path, e))
    }

    /// The constructor's arguments, key `config`. With `#[serde(deny_unknown_fields)]` on `T`, an option that the
    /// harness does not know fails the case with its name.
    ///
    /// # Errors
    /// When the file cannot be read or holds other options than `T`.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        let mut json = self.json()?;
        let config = json.get_mut("config").map(Value::take).unwrap_or(Value::Null);
        serde_json::from_value(config).map_err(|e| at(&self.json_path(), format!("config: {e}")))
    }

    /// `io.safetensors` or `<case>.safetensors`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn tensors(&self) -> Result<Tensors> {
        let path = if self.stem.is_some() { self.file("safetensors") } else { self.path("io.safetensors") };
        Tensors::open(&path)
    }

    /// `weights.safetensors` of the first layout.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn weights(&self) -> Result<Tensors> {
        Tensors::open(&self.path("weights.safetensors"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn cases_are_found_in_both_layouts() {
        let root = tempfile::tempdir().unwrap();
        for file in [
            "vit/b/io.safetensors",
            "vit/a/config.json",
            "norm/io.safetensors",
            "clip/x.json",
            "clip/x.safetensors",
            "clip/y.png",
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        fs::write(root.path().join("README.md"), "").unwrap();
        let cases = discover(root.path()).unwrap();
        assert_eq!(cases.iter().map(Case::id).collect::<Vec<_>>(), ["clip/x", "norm", "vit/a", "vit/b"]);
        assert!(cases[0].json().is_ok() && cases[2].json().is_ok());
        assert!(cases[0].sibling("z").file("json").ends_with("clip/z.json"));
        assert!(cases[2].sibling("c").path("config.json").ends_with("vit/c/config.json"));
        assert!(discover(&root.path().join("none")).is_err());
    }

    #[test]
    fn an_option_that_is_not_known_is_named() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Options {
            #[serde(rename = "depth")]
            _depth: usize,
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("vit/a")).unwrap();
        fs::write(root.path().join("vit/a/config.json"), r#"{"config": {"depth": 2, "qk_norm": true}}"#).unwrap();
        let error = discover(root.path()).unwrap()[0].config::<Options>().unwrap_err().to_string();
        assert!(error.contains("qk_norm") && error.contains("config.json"), "{error}");
    }
}
