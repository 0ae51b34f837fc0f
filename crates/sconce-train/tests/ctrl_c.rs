//! Ctrl-C in a process of its own: the first finishes the step and saves, the second ends the process.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use candle_core::{DType, Device};
use sconce_nn::{Module, ParamStore, linear};
use sconce_ops::Generator;
use sconce_train::*;

const FOLDER: &str = "SCONCE_TEST_CTRL_C_FOLDER";
const STUBBORN: &str = "SCONCE_TEST_CTRL_C_STUBBORN";

/// What the child process does; run by the tests below with the folder in the environment.
#[test]
#[ignore = "the body of a child process"]
fn child() -> Result<()> {
    let Some(folder) = std::env::var_os(FOLDER) else { return Ok(()) };
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let model = linear(2, 1, store.vb())?;
    let optimizer = AdamW::new(ParamGroups::new(store.parameters())?, AdamWConfig::default());
    let mut trainer = Trainer::new(store, optimizer, Generator::new(1))
        .with_checkpoints(CheckpointFolder::new(folder, 1)?, None)
        .with_interrupt(Interrupt::on_ctrl_c()?);
    let again = Interrupt::on_ctrl_c()?;
    let endless = (0u64..).map(Ok::<_, Error>);
    let outcome = trainer.epoch(endless, |_, index| {
        if index == 3 {
            println!("\nready");
        }
        std::thread::sleep(Duration::from_millis(5));
        while std::env::var_os(STUBBORN).is_some() && again.is_requested() {
            println!("\nstuck");
            std::thread::sleep(Duration::from_millis(50));
        }
        let xs = Generator::current().normal(0., 1., (4, 2), DType::F32, &Device::Cpu)?;
        Ok(model.forward(&xs)?.sqr()?.mean_all()?.into())
    })?;
    assert_eq!(outcome, Outcome::Interrupted);
    println!("\nstopped at {}", trainer.position().step);
    Ok(())
}

fn start(folder: &Path, stubborn: bool) -> (Child, impl FnMut(&str) -> String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]).env(FOLDER, folder);
    if stubborn {
        command.env(STUBBORN, "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let until = move |word: &str| lines.by_ref().map(|line| line.unwrap()).find(|line| line.contains(word)).unwrap();
    (child, until)
}

fn press_ctrl_c(child: &Child) {
    let status = Command::new("sh").arg("-c").arg(format!("kill -INT {}", child.id())).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_first_ctrl_c_finishes_the_step_and_saves() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, mut until) = start(folder.path(), false);
    until("ready");
    press_ctrl_c(&child);
    let step: u64 = until("stopped at").rsplit(' ').next().unwrap().parse().unwrap();
    assert!(child.wait().unwrap().success());
    let saved = CheckpointFolder::new(folder.path(), 1)?.load_latest(&Device::Cpu)?.unwrap();
    assert!(step >= 3);
    assert_eq!(saved.position, Position { step, epoch: 0, batch: step });
    Ok(())
}

#[test]
fn the_second_ctrl_c_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, mut until) = start(folder.path(), true);
    until("ready");
    press_ctrl_c(&child);
    until("stuck");
    press_ctrl_c(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
