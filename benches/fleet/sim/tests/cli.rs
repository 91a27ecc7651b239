//! The program as calibrate.py calls it.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cutline-fleet-sim")).args(arguments).output().unwrap()
}

#[test]
fn calibration_prints_mean_median_and_tail_with_their_ranges() {
    let output = run(&["calibrate", "2", "0.3", "0.1", "0.05", "60"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines.iter().map(|line| line[0]).collect::<Vec<_>>(), ["mean", "p50", "p95"]);
    for line in lines {
        let [middle, low, high] = [1, 2, 3].map(|at: usize| line[at].parse::<f64>().unwrap());
        assert!(0.3 < low && low <= middle && middle <= high && high < 3.0, "{line:?}");
    }
}

#[test]
fn wrong_arguments_are_refused() {
    for arguments in [&["calibrate", "1"][..], &["simulate"]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
