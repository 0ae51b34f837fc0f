//! Parameters in groups with their own learning rate and weight decay.

use std::collections::HashSet;

use candle_core::Var;
use sconce_nn::matches;

use crate::{Error, Result};

/// A parameter and its full name in the model.
#[derive(Clone, Debug)]
pub struct Param {
    /// Full name, as in the checkpoint.
    pub name: String,
    /// The variable itself, shared with the model.
    pub var: Var,
}

impl From<(String, Var)> for Param {
    fn from((name, var): (String, Var)) -> Self {
        Self { name, var }
    }
}

impl From<sconce_nn::Param> for Param {
    fn from(param: sconce_nn::Param) -> Self {
        Self { name: param.name.to_string(), var: param.var }
    }
}

/// Parameters that share a learning rate and a weight decay.
///
/// Both are factors on the optimiser's own values, so that one schedule drives all groups.
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// The parameters, in the order in which they were given.
    pub params: Vec<Param>,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Factor on the weight decay: 0 excludes the group from it.
    pub weight_decay_scale: f64,
}

/// All parameters of an optimiser, in groups.
#[derive(Clone, Debug, Default)]
pub struct ParamGroups(Vec<ParamGroup>);

impl ParamGroups {
    /// One group with every parameter.
    ///
    /// A variable under two names (tied weights) is kept once, under its first name.
    ///
    /// # Errors
    /// Two variables with one name; a variable that is not of a floating point type.
    pub fn new<P: Into<Param>>(params: impl IntoIterator<Item = P>) -> Result<Self> {
        Self::builder(params).build()
    }

    /// Starts grouping parameters by rules; see [`GroupBuilder`].
    pub fn builder<P: Into<Param>>(params: impl IntoIterator<Item = P>) -> GroupBuilder {
        GroupBuilder {
            rules: params.into_iter().map(|param| Ruled { param: param.into(), lr_scale: 1., decays: true }).collect(),
        }
    }

    /// The groups.
    pub fn as_slice(&self) -> &[ParamGroup] {
        &self.0
    }

    /// The groups, for changing their factors between steps.
    pub fn as_mut_slice(&mut self) -> &mut [ParamGroup] {
        &mut self.0
    }

    /// Every parameter with its group, group by group.
    pub fn iter(&self) -> impl Iterator<Item = (&ParamGroup, &Param)> {
        self.0.iter().flat_map(|group| group.params.iter().map(move |param| (group, param)))
    }

    /// Number of parameter tensors.
    pub fn len(&self) -> usize {
        self.0.iter().map(|group| group.params.len()).sum()
    }

    /// Whether there is no parameter at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Debug)]
struct Ruled {
    param: Param,
    lr_scale: f64,
    decays: bool,
}

/// Groups parameters by their names and shapes.
///
/// Rules apply in the order in which they are called; factors on the learning rate multiply.
/// Patterns are those of [`sconce_nn::matches`].
///
/// ```
/// # use candle_core::{DType, Device, Var};
/// # use sconce_train::{ParamGroups, vit_layer};
/// # fn main() -> sconce_train::Result<()> {
/// # let var = || Var::zeros((2, 2), DType::F32, &Device::Cpu);
/// # let params = vec![("blocks.0.attn.qkv.weight".to_owned(), var()?), ("pos_embed".to_owned(), var()?)];
/// // The usual fine-tuning of a vision transformer.
/// let groups = ParamGroups::builder(params)
///     .exclude_1d()
///     .exclude(&["*pos_embed", "*cls_token"])
///     .layer_decay(0.75, 13, |name| vit_layer(name, 12))
///     .build()?;
/// assert_eq!(groups.as_slice().len(), 2);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct GroupBuilder {
    rules: Vec<Ruled>,
}

impl GroupBuilder {
    /// Keeps weight decay off biases, norms and every other parameter with at most one dimension,
    /// and off parameters named `*bias`.
    #[must_use]
    pub fn exclude_1d(self) -> Self {
        self.each(|rule| {
            if rule.param.var.dims().len() <= 1 || rule.param.name.ends_with("bias") {
                rule.decays = false;
            }
        })
    }

    /// Keeps weight decay off the parameters that match one of the patterns.
    #[must_use]
    pub fn exclude(self, patterns: &[&str]) -> Self {
        self.each(|rule| {
            if patterns.iter().any(|p| matches(p, &rule.param.name)) {
                rule.decays = false;
            }
        })
    }

    /// What timm, DeiT and DINO exclude from weight decay: [`GroupBuilder::exclude_1d`], position
    /// embeddings and class, distillation and register tokens.
    #[must_use]
    pub fn exclude_vit(self) -> Self {
        self.exclude_1d().exclude(&[
            "*pos_embed",
            "*cls_token",
            "*dist_token",
            "*reg_token",
            "*class_embedding",
            "*positional_embedding",
        ])
    }

    /// Multiplies the learning rate of the parameters that match the pattern.
    #[must_use]
    pub fn lr_scale(self, pattern: &str, scale: f64) -> Self {
        self.each(|rule| {
            if matches(pattern, &rule.param.name) {
                rule.lr_scale *= scale;
            }
        })
    }

    /// Layer-wise learning rate decay (ELECTRA; Bao et al. 2022, "BEiT"; timm's rule): the rate of
    /// layer `l` is multiplied by `decay^(last - l)`, where `last` is the layer of the head.
    ///
    /// `layer_of` gives the layer of a parameter by its name, see [`vit_layer`].
    #[must_use]
    pub fn layer_decay(self, decay: f64, last: usize, layer_of: impl Fn(&str) -> usize) -> Self {
        self.each(|rule| {
            let distance = last.saturating_sub(layer_of(&rule.param.name));
            rule.lr_scale *= decay.powi(distance.min(i32::MAX as usize) as i32);
        })
    }

    /// Forms the groups, in the order in which their first parameters were given.
    ///
    /// # Errors
    /// Two variables with one name; a variable that is not of a floating point type; a factor on
    /// the learning rate that is negative or not finite.
    pub fn build(self) -> Result<ParamGroups> {
        let (mut names, mut ids) = (HashSet::new(), HashSet::new());
        let mut groups: Vec<ParamGroup> = Vec::new();
        for Ruled { param, lr_scale, decays } in self.rules {
            if !ids.insert(param.var.id()) {
                continue;
            }
            if !names.insert(param.name.clone()) {
                return Err(Error::DuplicateParameter { name: param.name });
            }
            if !param.var.dtype().is_float() {
                let dtype = param.var.dtype();
                let name = param.name;
                return Err(Error::NotFloat { name, dtype });
            }
            if !lr_scale.is_finite() || lr_scale < 0. {
                return Err(Error::Config(format!("the learning rate of {} is multiplied by {lr_scale}", param.name)));
            }
            let weight_decay_scale = if decays { 1. } else { 0. };
            let same = |g: &&mut ParamGroup| g.lr_scale == lr_scale && g.weight_decay_scale == weight_decay_scale;
            match groups.iter_mut().find(same) {
                Some(group) => group.params.push(param),
                None => groups.push(ParamGroup { params: vec![param], lr_scale, weight_decay_scale }),
            }
        }
        Ok(ParamGroups(groups))
    }

    fn each(mut self, rule: impl FnMut(&mut Ruled)) -> Self {
        self.rules.iter_mut().for_each(rule);
        self
    }
}

/// Layer of a parameter of a vision transformer with timm's names, for
/// [`GroupBuilder::layer_decay`]: 0 for the embeddings, `i + 1` for `blocks.i`, `depth + 1` for the
/// rest (final norm and head).
pub fn vit_layer(name: &str, depth: usize) -> usize {
    const EMBEDDINGS: [&str; 4] = ["cls_token", "dist_token", "pos_embed", "patch_embed"];
    let mut segments = name.split('.');
    while let Some(segment) = segments.next() {
        if EMBEDDINGS.contains(&segment) {
            return 0;
        }
        if segment == "blocks"
            && let Some(index) = segments.next().and_then(|i| i.parse::<usize>().ok())
        {
            return index.saturating_add(1).min(depth + 1);
        }
    }
    depth + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn named(names: &[(&str, &[usize])]) -> Vec<(String, Var)> {
        names
            .iter()
            .map(|(name, shape)| {
                let var = Var::zeros(*shape, DType::F32, &Device::Cpu).unwrap();
                ((*name).to_owned(), var)
            })
            .collect()
    }

    #[test]
    fn vit_parameters_fall_into_the_groups_of_the_beit_rule() {
        let params = named(&[
            ("cls_token", &[1, 1, 4]),
            ("patch_embed.proj.weight", &[4, 3, 2, 2]),
            ("blocks.0.norm1.weight", &[4]),
            ("blocks.0.attn.qkv.weight", &[12, 4]),
            ("blocks.1.attn.qkv.weight", &[12, 4]),
            ("norm.weight", &[4]),
            ("head.weight", &[10, 4]),
            ("head.bias", &[10]),
        ]);
        let groups =
            ParamGroups::builder(params).exclude_vit().layer_decay(0.5, 3, |name| vit_layer(name, 2)).build().unwrap();
        let table: Vec<(&str, f64, f64)> =
            groups.iter().map(|(g, p)| (p.name.as_str(), g.lr_scale, g.weight_decay_scale)).collect();
        let of = |name: &str| table.iter().find(|t| t.0 == name).map(|t| (t.1, t.2)).unwrap();
        assert_eq!(of("cls_token"), (0.125, 0.));
        assert_eq!(of("patch_embed.proj.weight"), (0.125, 1.));
        assert_eq!(of("blocks.0.norm1.weight"), (0.25, 0.));
        assert_eq!(of("blocks.0.attn.qkv.weight"), (0.25, 1.));
        assert_eq!(of("blocks.1.attn.qkv.weight"), (0.5, 1.));
        assert_eq!(of("norm.weight"), (1., 0.));
        assert_eq!(of("head.weight"), (1., 1.));
        assert_eq!(of("head.bias"), (1., 0.));
        assert_eq!(groups.len(), 8);
        assert_eq!(groups.as_slice().len(), 7);
    }

    #[test]
    fn tied_weights_are_kept_once_and_names_are_unique() {
        let mut params = named(&[("a", &[2])]);
        let tied = params[0].1.clone();
        params.push(("b".to_owned(), tied));
        assert_eq!(ParamGroups::new(params).unwrap().len(), 1);
        let twice = named(&[("a", &[2]), ("a", &[2])]);
        assert!(matches!(
            ParamGroups::new(twice),
            Err(Error::DuplicateParameter { name }) if name == "a"
        ));
        let integer = Var::zeros(2, DType::U32, &Device::Cpu).unwrap();
        assert!(matches!(ParamGroups::new([("i".to_owned(), integer)]), Err(Error::NotFloat { .. })));
    }
}
