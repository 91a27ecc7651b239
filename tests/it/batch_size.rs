//! Trying out a batch size, with a real engine. How the search decides is tested beside it.

use cutline::engine::{self, EngineOptions, HubOptions, batch_size, bench, source};

#[test]
fn an_engine_is_tried_out_and_left_without_work() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/tied");
    let files = source::open(&model.parse().unwrap(), &HubOptions::default()).unwrap();
    let mut engine = engine::load(&files, EngineOptions::default()).unwrap();
    let patch = engine.info().patch_size;

    // Wider than high: the size is that of the settings, not the model's own.
    let found = batch_size::find(&mut engine, 2 * patch, patch).unwrap();
    assert!(found.rows.is_power_of_two() && found.rows <= 256, "{found:?}");
    assert!(found.images_per_second > 0.0, "{found:?}");
    assert_eq!(engine.active(), 0);

    let refused = batch_size::find(&mut engine, 2 * patch, patch + 1);
    assert!(refused.is_err(), "no such image");
    engine.encode_one(bench::image(0, patch).into()).unwrap();
}
