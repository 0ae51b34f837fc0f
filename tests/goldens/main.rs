//! One test per golden case found in the golden folder.
//!
//! `SCONCE_GOLDEN_DIR=DIR cargo test -p sconce-tests --test goldens` runs every case in `DIR`; without the variable
//! the small tier in `tests/golden` runs.

mod boat;
mod bvit;
mod clip;
mod clip_adapter;
mod clip_preprocess;
mod clip_tokenizer;
mod common;
mod convmixer;
mod coop;
mod cswin;
mod cxv;
mod dapl;
mod dino;
mod efficientnet_lite;
mod linear_attention;
mod model;
mod norm_eps;
mod q16;
mod resnet;
mod running;
mod swin;
mod t2t;
mod uniformer;
mod vit;
mod vit2hash;
mod wukong;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sconce_tests::golden::{Case, Run, discover, folder, small_tier};

/// The systems that this library has. Add a line and a module to teach the harness another one.
const SYSTEMS: &[(&str, Run)] = &[
    ("boat", boat::run),
    ("bvit", bvit::run),
    ("clip", clip::run),
    ("clip_adapter", clip_adapter::run),
    ("clip_preprocess", clip_preprocess::run),
    ("clip_tokenizer", clip_tokenizer::run),
    ("common", common::run),
    ("coop", coop::run),
    ("convmixer", convmixer::run),
    ("cswin", cswin::run),
    ("cxv", cxv::run),
    ("dapl", dapl::run),
    ("dino", dino::run),
    ("linear_attention", linear_attention::run),
    ("efficientnet_lite", efficientnet_lite::run),
    ("norm_eps", norm_eps::run),
    ("q16", q16::run),
    ("resnet", resnet::run),
    ("swin", swin::run),
    ("t2t", t2t::run),
    ("uniformer", uniformer::run),
    ("vit", vit::run),
    ("wukong", wukong::run),
    ("vit2hash", vit2hash::run),
];

fn main() {
    let arguments = Arguments::from_args();
    let root = folder();
    let trials = match discover(&root) {
        Ok(cases) if cases.is_empty() => vec![failed(format!("no case in {}", root.display()))],
        Ok(cases) => {
            let covered = SYSTEMS.iter().map(|(system, _)| {
                let present = cases.iter().any(|case| case.system == *system);
                (system.to_string(), present)
            });
            let covered: Vec<_> = covered.collect();
            let mut trials: Vec<_> = cases.into_iter().map(trial).collect();
            if root == small_tier() {
                trials.push(Trial::test("the small tier has a case of every system", move || every_system(&covered)));
            }
            trials
        }
        Err(error) => vec![failed(error.to_string())],
    };
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(case: Case) -> Trial {
    match SYSTEMS.iter().find(|(system, _)| *system == case.system) {
        Some((_, run)) => Trial::test(case.id(), move || Ok(run(&case)?)),
        None => {
            let reason = format!("the library has no system named {}", case.system);
            Trial::ignorable_test(case.id(), move || Ok(Completion::ignored_with(reason)))
        }
    }
}

fn every_system(covered: &[(String, bool)]) -> Result<(), Failed> {
    let missing: Vec<_> = covered.iter().filter(|(_, present)| !present).map(|(system, _)| system).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("no case of {missing:?}").into()) }
}

/// An empty or unreadable folder is a failure: a run of no tests would look like success.
fn failed(message: String) -> Trial {
    Trial::test("golden folder", move || Err(message.into()))
}
