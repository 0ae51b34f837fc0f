//! timm's names.

use sconce_nn::{KeyMap, Source};

use super::Config;

/// Where timm's files hold what [`EfficientNetLite`](super::EfficientNetLite) asks for by the names of the classic PyTorch
/// port: blocks numbered within their stage, norms counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub struct TimmKeys {
    /// Options of the model.
    pub config: Config,
}

impl TimmKeys {
    /// Whether the names of a file are timm's.
    pub fn detect<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
        names.into_iter().any(|name| name == "conv_stem.weight")
    }

    fn block(&self, rest: &str) -> Option<String> {
        let (number, rest) = rest.split_once('.')?;
        let (module, kind) = rest.split_once('.')?;
        let (stage, index) = self.config.places().nth(number.parse().ok()?)?;
        let widens = self.config.stages[stage].expand_ratio != 1;
        let module = match (module, widens) {
            ("_expand_conv", true) => "conv_pw",
            ("_bn0", true) => "bn1",
            ("_depthwise_conv", _) => "conv_dw",
            ("_bn1", true) => "bn2",
            ("_project_conv", true) => "conv_pwl",
            ("_bn2", true) => "bn3",
            ("_bn1", false) => "bn1",
            ("_project_conv", false) => "conv_pw",
            ("_bn2", false) => "bn2",
            _ => return None,
        };
        Some(format!("blocks.{stage}.{index}.{module}.{kind}"))
    }
}

impl KeyMap for TimmKeys {
    fn source(&self, name: &str) -> Source {
        let named = || {
            let (module, rest) = name.split_once('.')?;
            let module = match module {
                "_blocks" => return self.block(rest),
                "_conv_stem" => "conv_stem",
                "_bn0" => "bn1",
                "_conv_head" => "conv_head",
                "_bn1" => "bn2",
                "_fc" => "classifier",
                _ => return None,
            };
            Some(format!("{module}.{rest}"))
        };
        named().map_or(Source::Missing, Source::Tensor)
    }
}
