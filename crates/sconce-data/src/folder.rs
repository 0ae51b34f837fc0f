//! Folders of image files.

use crate::{Dataset, DecodeLimits, Error, Generator, Picture, Result};
use std::path::{Path, PathBuf};

/// Extensions that are taken for images, in lower case.
pub const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Deepest nesting of folders that is followed; links that lead in circles end here.
const DEPTH: usize = 32;

/// All image files under a folder, in every depth, sorted by path. Hidden files are left out.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be read, [`Error::Empty`] when it holds no image.
pub fn image_files(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let folder = folder.as_ref();
    let mut files = Vec::new();
    collect(folder, DEPTH, &mut files)?;
    if files.is_empty() {
        let reason = format!("no image file ({})", EXTENSIONS.join(", "));
        return Err(Error::Empty { path: folder.to_path_buf(), reason });
    }
    files.sort();
    Ok(files)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() {
            if depth > 0 {
                collect(&path, depth - 1, files)?;
            }
        } else if is_image(&path) {
            files.push(path);
        }
    }
    Ok(())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Images in one folder per class, `root/class/**/*.png`, as torchvision's `ImageFolder`: classes are numbered in
/// the sorted order of their names, images are sorted by path.
#[derive(Debug, Clone)]
pub struct ImageFolder {
    classes: Vec<String>,
    files: Vec<(PathBuf, u32)>,
    limits: DecodeLimits,
}

impl ImageFolder {
    /// Lists the classes and files under `root`; images are decoded when they are asked for.
    ///
    /// # Errors
    /// [`Error::Io`] when a folder cannot be read, [`Error::Empty`] without class folders or for a class without
    /// images.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let folders: Vec<_> = entries(root)?.into_iter().filter(|path| path.is_dir()).collect();
        if folders.is_empty() {
            let reason = "no class folder: images are expected as root/class/image.png".into();
            return Err(Error::Empty { path: root.to_path_buf(), reason });
        }
        let mut files = Vec::new();
        let mut classes = Vec::with_capacity(folders.len());
        for (label, folder) in folders.iter().enumerate() {
            files.extend(image_files(folder)?.into_iter().map(|path| (path, label as u32)));
            classes.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        Ok(Self { classes, files, limits: DecodeLimits::default() })
    }

    /// The same with other limits for decoding.
    pub fn with_limits(self, limits: DecodeLimits) -> Self {
        Self { limits, ..self }
    }

    /// Class names, sorted; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Files and labels.
    pub fn files(&self) -> &[(PathBuf, u32)] {
        &self.files
    }
}

impl Dataset for ImageFolder {
    type Item = (Picture, u32);

    fn len(&self) -> usize {
        self.files.len()
    }

    fn get(&self, index: usize, _generator: &Generator) -> Result<Self::Item> {
        let (path, label) = self.files.get(index).ok_or(Error::OutOfRange { index, len: self.files.len() })?;
        Ok((Picture::open_with(path, &self.limits)?, *label))
    }
}
