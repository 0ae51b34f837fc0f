//! What is asked for.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// How the classes are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// By the class names alone.
    ZeroShot,
    /// Learned words (Zhou et al. 2022).
    Coop,
    /// Learned words that each picture shifts (Zhou et al. 2022).
    Cocoop,
    /// A small network on the picture's features (Gao et al. 2021).
    ClipAdapter,
    /// A cache of the labelled pictures (Zhang et al. 2022).
    TipAdapter,
    /// The same with its keys trained.
    TipAdapterF,
    /// Words for two domains, with pictures of the target that have no labels (Ge et al. 2022); needs --target.
    Dapl,
    /// The same with the paper's denominator, over both domains.
    DaplAllDomains,
    /// Two classes told apart by two vectors, and a data set documented by them (Schramowski et al. 2022).
    Q16,
}

impl Method {
    /// Its name on the command line and in folders.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Its name in tables.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::ZeroShot => "zero-shot",
            Self::Coop => "CoOp",
            Self::Cocoop => "CoCoOp",
            Self::ClipAdapter => "CLIP-Adapter",
            Self::TipAdapter => "Tip-Adapter",
            Self::TipAdapterF => "Tip-Adapter-F",
            Self::Dapl => "DAPL",
            Self::DaplAllDomains => "DAPL, all domains",
            Self::Q16 => "Q16",
        }
    }

    /// Whether pictures of the target without labels are learned from.
    #[must_use]
    pub fn needs_target(self) -> bool {
        matches!(self, Self::Dapl | Self::DaplAllDomains)
    }
}

/// Labelled pictures of each class; in JSON "4" or "all".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ShotCount {
    /// So many, or all of a class that has fewer.
    Some(usize),
    /// All that there are.
    All,
}

impl ShotCount {
    /// "1 shot", "all shots".
    #[must_use]
    pub fn in_words(self) -> String {
        if self == Self::Some(1) { "1 shot".to_owned() } else { format!("{self} shots") }
    }
}

impl From<ShotCount> for String {
    fn from(shots: ShotCount) -> Self {
        shots.to_string()
    }
}

impl TryFrom<String> for ShotCount {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for ShotCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "all" => Ok(Self::All),
            number => match number.parse() {
                Ok(count) if count > 0 => Ok(Self::Some(count)),
                _ => Err(format!("{text:?} is neither a number from 1 nor `all`")),
            },
        }
    }
}

impl fmt::Display for ShotCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Some(count) => write!(f, "{count}"),
            Self::All => f.write_str("all"),
        }
    }
}

/// How the learning rate goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleName {
    /// Warm-up, then a cosine to 0 over all steps.
    Cosine,
    /// Each method's own, with its quirks, and its published settings otherwise.
    Official,
}

/// Where the class name stands among the learned words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// After them.
    End,
    /// Between two halves.
    Middle,
    /// Before them.
    Front,
}

/// An optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerName {
    /// Stochastic gradient descent with momentum 0.9.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// What is asked for.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// One method or several, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "coop")]
    pub method: Vec<Method>,
    /// Zero-shot, CoOp, CoCoOp, CLIP-Adapter and Tip-Adapter-F at 1, 2, 4, 8 and 16 shots, seeds 1, 2 and 3.
    #[arg(long, conflicts_with_all = ["method", "shots", "seeds"])]
    pub table: bool,
    /// Labelled pictures of each class, or `all`; several separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "16")]
    pub shots: Vec<ShotCount>,
    /// Seeds of the draw of pictures and of the training, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub seeds: Vec<u64>,
    /// Pictures and classes.
    #[command(flatten, next_help_heading = "Pictures")]
    pub data: DataOptions,
    /// How heads are trained.
    #[command(flatten, next_help_heading = "Training")]
    pub training: TrainingOptions,
    /// Q16: how the names of the classes begin that are looked for.
    #[arg(long, default_value = "food")]
    pub look_for: String,
    /// Q16: texts of other pictures and of those to look for, separated by a comma. [default: "thing", and --look-for]
    #[arg(long, value_delimiter = ',')]
    pub texts: Vec<String>,
    /// Q16: probability from which a picture is flagged.
    #[arg(long, default_value_t = 0.9)]
    pub threshold: f64,
    /// Folder for heads, logs, curves, tables, and the cache of features.
    #[arg(long, default_value = "runs/adapt")]
    pub out: PathBuf,
    /// Begin anew where there are results or checkpoints in --out; otherwise they are used.
    #[arg(long)]
    pub fresh: bool,
    /// Say nothing but results.
    #[arg(long)]
    pub quiet: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// Pictures and classes.
#[derive(Debug, Clone, Args, Serialize)]
pub struct DataOptions {
    /// Model: a folder or a checkpoint file of any CLIP format. [default: the small model of the repository]
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Folder with a folder of pictures for each class. [default: the repository's drawings in the style of --source]
    #[arg(long, conflicts_with_all = ["split", "source"])]
    pub images: Option<PathBuf>,
    /// Split file in CoOp's form, `split_zhou_<Name>.json`; its paths begin at --root.
    #[arg(long, requires = "root", conflicts_with = "source")]
    pub split: Option<PathBuf>,
    /// Folder that the paths of --split begin at.
    #[arg(long)]
    pub root: Option<PathBuf>,
    /// JSON file with the positions of the labelled pictures in the training part of --split, {"train": [..], "val": [..]}.
    #[arg(long, requires = "split")]
    pub indices: Option<PathBuf>,
    /// Drawing style that the labelled pictures are in.
    #[arg(long)]
    pub source: Option<String>,
    /// Evaluate on these pictures instead: a drawing style, or a folder with a folder for each class. Half of them are for
    /// the test, the other half is what DAPL sees without labels.
    #[arg(long)]
    pub target: Option<String>,
    /// Fewest pictures that a class of the drawings has.
    #[arg(long, default_value_t = 8)]
    pub least: usize,
    /// Share of each class that is kept for the test where no split file says which.
    #[arg(long, default_value_t = 0.5)]
    pub test_share: f64,
    /// Seed of that choice.
    #[arg(long, default_value_t = 0)]
    pub split_seed: u64,
    /// Leave the test pictures alone and evaluate on half of the training pictures, to choose options with.
    #[arg(long)]
    pub tune: bool,
    /// Train on the first half of the classes and evaluate on both halves.
    #[arg(long)]
    pub base_to_new: bool,
    /// Pattern of a class's text with {} for its name; several are averaged. [default: the name alone for the small model,
    /// "a photo of a {}." for others]
    #[arg(long)]
    pub template: Vec<String>,
}

/// How heads are trained; what is not given is the method's own.
#[derive(Debug, Clone, Args, Serialize)]
pub struct TrainingOptions {
    /// How the learning rate goes.
    #[arg(long, value_enum, default_value_t = ScheduleName::Cosine)]
    pub schedule: ScheduleName,
    /// Passes over the labelled pictures.
    #[arg(long)]
    pub epochs: Option<u64>,
    /// Pictures in a step.
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Highest learning rate.
    #[arg(long)]
    pub lr: Option<f64>,
    /// Weight decay.
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Optimiser.
    #[arg(long, value_enum)]
    pub optimizer: Option<OptimizerName>,
    /// Learned tokens of a prompt.
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Words that the learned tokens begin as, such as "a photo of a".
    #[arg(long, conflicts_with = "ctx")]
    pub ctx_init: Option<String>,
    /// Learn tokens for each class.
    #[arg(long)]
    pub class_specific: bool,
    /// Where the class name stands.
    #[arg(long, value_enum)]
    pub position: Option<Place>,
    /// What follows the class name in CoOp's and CoCoOp's prompts. [default: a full stop; nothing for the small model, whose
    /// texts have none]
    #[arg(long)]
    pub ending: Option<String>,
    /// What follows the class name in DAPL's prompts, with {} for the domain. [default: " , a {} image..", which is the released
    /// code's; nothing for the small model]
    #[arg(long)]
    pub domain_ending: Option<String>,
    /// The domains in DAPL's prompts, source and target, separated by a comma. [default: what
    /// they are called]
    #[arg(long, value_delimiter = ',')]
    pub domains: Vec<String>,
    /// Share of the adapted features in CLIP-Adapter.
    #[arg(long)]
    pub ratio: Option<f64>,
    /// Weight of the cache in Tip-Adapter.
    #[arg(long)]
    pub alpha: Option<f64>,
    /// Sharpness of the cache in Tip-Adapter.
    #[arg(long)]
    pub beta: Option<f64>,
    /// Weight of the pictures without labels in DAPL.
    #[arg(long)]
    pub unlabelled_weight: Option<f64>,
    /// Probability from which DAPL takes a pseudo label.
    #[arg(long)]
    pub pseudo_threshold: Option<f64>,
    /// Random views of each labelled picture to train on beside the picture itself: crops, flipped half of the time; of all,
    /// one is drawn in each step, and Tip-Adapter takes their mean. [default: 8 for the small model, 0 for others]
    #[arg(long)]
    pub views: Option<u32>,
    /// Least part of the picture that such a view shows.
    #[arg(long, default_value_t = 0.5)]
    pub view_area: f64,
}
