//! Model folders from a hub, kept in its local cache (feature `hub`).

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo};

/// Configurations, the first that a repository has is taken.
const CONFIGS: [&str; 2] = ["open_clip_config.json", "config.json"];
/// Weights, the first that a repository has is taken: those that run no code first.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"];
/// Taken where they are.
const EXTRAS: [&str; 2] = ["tokenizer.json", "preprocessor_config.json"];

/// Why a model could not be had from a hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Not the name of a repository.
    #[error("{0:?} is not the name of a repository: owner/name is needed")]
    Name(String),
    /// The hub answered otherwise than expected, or not at all.
    #[error("{repo}: {source}")]
    Api {
        /// The repository.
        repo: String,
        /// What failed.
        source: Box<ApiError>,
    },
    /// The repository holds no file of a kind that is needed.
    #[error("{repo} has none of {wanted:?}")]
    Missing {
        /// The repository.
        repo: String,
        /// Names that would do.
        wanted: Vec<&'static str>,
    },
}

/// Where models come from and where they are kept.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// Address of the hub; that of `HF_ENDPOINT`, else the public one, when absent.
    pub endpoint: Option<String>,
    /// Folder of the cache; that of `HF_HOME`, else the usual one, when absent.
    pub cache: Option<PathBuf>,
    /// Whether to draw progress bars.
    pub progress: bool,
}

impl Hub {
    /// A folder that holds the repository's configuration, weights, and tokenizer where it has one.
    ///
    /// Nothing is asked of the network when configuration and weights are in the cache.
    ///
    /// # Errors
    /// No network and nothing in the cache; no such repository; a repository without configuration or weights.
    pub fn model_folder(&self, repo: &str) -> Result<PathBuf, HubError> {
        let part = |s: &str| {
            !s.is_empty()
                && !s.starts_with('.')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !repo.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name)) {
            return Err(HubError::Name(repo.to_string()));
        }
        let fail = |source| HubError::Api { repo: repo.to_string(), source: Box::new(source) };
        let cache = self.cache.clone().map_or_else(Cache::from_env, Cache::new);
        let cached = cache.repo(Repo::model(repo.to_string()));
        let first = |names: &[&'static str]| names.iter().find_map(|name| cached.get(name));
        if let (Some(config), Some(_)) = (first(&CONFIGS), first(&WEIGHTS))
            && let Some(folder) = config.parent()
        {
            return Ok(folder.to_path_buf());
        }

        let mut api = ApiBuilder::from_env().with_progress(self.progress);
        if let Some(endpoint) = &self.endpoint {
            api = api.with_endpoint(endpoint.clone());
        }
        if let Some(cache) = &self.cache {
            api = api.with_cache_dir(cache.clone());
        }
        let api = api.build().map_err(fail)?.model(repo.to_string());
        let info = api.info().map_err(fail)?;
        let has = |name: &&str| info.siblings.iter().any(|file| file.rfilename == *name);
        let pick = |names: &[&'static str]| {
            let wanted = names.to_vec();
            names.iter().copied().find(|name| has(name)).ok_or(HubError::Missing { repo: repo.to_string(), wanted })
        };
        // The configuration comes last: with it in the cache, everything else is.
        let (config, weights) = (pick(&CONFIGS)?, pick(&WEIGHTS)?);
        for name in EXTRAS.into_iter().filter(|name| has(name)).chain([weights]) {
            api.get(name).map_err(fail)?;
        }
        let config = api.get(config).map_err(fail)?;
        config.parent().map(PathBuf::from).ok_or_else(|| HubError::Name(repo.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Serves the hub's layout from memory on this machine.
    struct Server {
        endpoint: String,
        requests: Arc<AtomicUsize>,
    }

    impl Server {
        fn new(files: BTreeMap<&'static str, Vec<u8>>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let requests = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&requests);
            std::thread::spawn(move || {
                for stream in listener.incoming().take(64).flatten() {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let _ = answer(stream, &files);
                }
            });
            Self { endpoint, requests }
        }

        fn hub(&self, cache: &std::path::Path) -> Hub {
            Hub { endpoint: Some(self.endpoint.clone()), cache: Some(cache.to_path_buf()), progress: false }
        }
    }

    fn answer(mut stream: TcpStream, files: &BTreeMap<&'static str, Vec<u8>>) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or(Ok(String::new()))?;
        let mut range = None;
        for line in lines {
            let line = line?.to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("range: bytes=") {
                range = value.split_once('-').map(|(from, to)| (from.to_string(), to.to_string()));
            }
        }
        let path = request.split(' ').nth(1).unwrap_or_default().to_string();
        let head = "x-repo-commit: 0123456789abcdef\r\nconnection: close\r\n";
        if path.starts_with("/api/models/owner/model") {
            let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "siblings": siblings, "sha": "0123456789abcdef" }).to_string();
            return write!(stream, "HTTP/1.1 200 OK\r\n{head}content-length: {}\r\n\r\n{body}", body.len());
        }
        let Some((name, body)) = files.iter().find(|(name, _)| path == format!("/owner/model/resolve/main/{name}"))
        else {
            return write!(stream, "HTTP/1.1 404 Not Found\r\n{head}content-length: 0\r\n\r\n");
        };
        let (from, to) = range.unwrap_or_default();
        let from: usize = from.parse().unwrap_or(0);
        let to = to.parse::<usize>().map_or(body.len(), |to| (to + 1).min(body.len()));
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\n{head}etag: \"{name}\"\r\ncontent-range: bytes {from}-{}/{}\r\ncontent-length: {}\r\n\r\n",
            to.saturating_sub(1),
            body.len(),
            to - from
        )?;
        stream.write_all(&body[from..to])
    }

    #[test]
    fn a_model_comes_once_and_then_from_the_cache() {
        let weights: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let server = Server::new(BTreeMap::from([
            ("config.json", b"{}".to_vec()),
            ("model.safetensors", weights.clone()),
            ("pytorch_model.bin", b"not wanted".to_vec()),
            ("tokenizer.json", b"{\"a\":1}".to_vec()),
        ]));
        let cache = tempfile::tempdir().unwrap();
        let hub = server.hub(cache.path());
        let folder = hub.model_folder("owner/model").unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
        assert_eq!(std::fs::read(folder.join("tokenizer.json")).unwrap(), b"{\"a\":1}");
        assert!(!folder.join("pytorch_model.bin").exists());

        let asked = server.requests.load(Ordering::SeqCst);
        assert_eq!(hub.model_folder("owner/model").unwrap(), folder);
        assert_eq!(server.requests.load(Ordering::SeqCst), asked);
    }

    #[test]
    fn what_a_repository_lacks_is_said() {
        let server = Server::new(BTreeMap::from([("config.json", b"{}".to_vec())]));
        let cache = tempfile::tempdir().unwrap();
        let hub = server.hub(cache.path());
        let error = hub.model_folder("owner/model").unwrap_err();
        assert!(matches!(&error, HubError::Missing { wanted, .. } if wanted.contains(&"model.safetensors")), "{error}");
        assert!(matches!(hub.model_folder("owner/other"), Err(HubError::Api { .. })));
        for name in ["", "model", "a/b/c", "../x", "owner/..", "o wner/model"] {
            assert!(matches!(hub.model_folder(name), Err(HubError::Name(_))), "{name}");
        }
    }
}
