//! Finds a batch size with a real engine. The decisions of the search are tested in its own module.

use cutline::engine::{self, EngineOptions, HubOptions, batch_size, bench, source};

#[test]
fn the_search_leaves_the_engine_without_jobs() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/tied");
    let files = source::open(&model.parse().unwrap(), &HubOptions::default()).unwrap();
    let mut engine = engine::load(&files, EngineOptions::default()).unwrap();
    let patch = engine.info().patch_size;

    // Wider than high: the size comes from the settings, not from the model.
    let found = batch_size::find(&mut engine, 2 * patch, patch).unwrap();
    assert!(found.rows.is_power_of_two() && found.rows <= 256, "{found:?}");
    assert!(found.images_per_second > 0.0, "{found:?}");
    assert_eq!(engine.active(), 0);

    let refused = batch_size::find(&mut engine, 2 * patch, patch + 1);
    assert!(refused.is_err(), "the height is no multiple of the patch size");
    engine.encode_one(bench::image(0, patch).into()).unwrap();
}
