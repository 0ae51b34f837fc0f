//! Text repair, held against what ftfy 6.3.1 makes of 300 damaged lines: words of many scripts, entities and controls, put
//! through up to three wrong code pages in whole or in part.

#[test]
fn repairs_as_ftfy_does() -> Result<(), Box<dyn std::error::Error>> {
    let cases: Vec<[String; 2]> = serde_json::from_str(include_str!("data/repair.json"))?;
    assert_eq!(cases.len(), 300);
    for [damaged, expected] in &cases {
        assert_eq!(&sconce_clip::clean::repair(damaged), expected, "{damaged:?}");
    }
    Ok(())
}
