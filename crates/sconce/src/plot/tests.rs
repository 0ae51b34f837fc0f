use super::*;
use sconce_metrics::Confusion;

fn chart(series: Vec<Series>) -> Chart {
    Chart { title: "t".into(), x: Axis::linear("epoch"), y: Axis::linear("loss"), series }
}

fn texts(svg: &Svg) -> Vec<String> {
    let after =
        |part: &str| part.split_once('>').map(|(_, text)| text.split('<').next().unwrap_or("").trim().to_owned());
    svg.as_str().split("<text").skip(1).filter_map(after).collect()
}

/// Values of an attribute of all elements with this name.
fn attributes(svg: &Svg, element: &str, name: &str) -> Vec<f64> {
    let value = |part: &str| {
        let tag = part.split('>').next().unwrap();
        tag.split(&format!(" {name}=\"")).nth(1).and_then(|rest| rest.split('"').next()?.parse().ok())
    };
    svg.as_str().split(&format!("<{element}")).skip(1).filter_map(value).collect()
}

#[test]
fn every_series_has_its_line_its_name_and_its_marks() {
    let series: Vec<Series> =
        (0..9u8).map(|i| Series::new(format!("run {i}"), [(1.0, f64::from(i)), (2.0, 3.0)])).collect();
    let svg = chart(series).svg().unwrap();
    let texts = texts(&svg);
    assert!((0..9).all(|i| texts.contains(&format!("run {i}"))), "{texts:?}");
    assert!(["t", "epoch", "loss"].iter().all(|text| texts.iter().any(|found| found == text)), "{texts:?}");
    assert_eq!(svg.as_str().matches("<circle").count(), 18);
    let inside = |name, limit: f64| attributes(&svg, "circle", name).iter().all(|at| *at > 0.0 && *at < limit);
    assert!(inside("cx", 770.0) && inside("cy", 520.0));
    // The legend is to the right of every mark and within the sheet.
    let legend = attributes(&svg, "text", "x").into_iter().filter(|x| *x > 770.0).count();
    assert!(legend == 9, "{legend} names");
}

#[test]
fn names_are_escaped_and_cut() {
    let hostile = "</text><script>\"&'\u{1}";
    let long = "long ".repeat(40);
    let points = [(0.0, 0.0), (1.0, 1.0)];
    let svg = Chart { title: hostile.into(), ..chart(vec![Series::new(hostile, points), Series::new(long, points)]) };
    let text = svg.svg().unwrap();
    assert!(!text.as_str().contains("<script") && text.as_str().contains("&lt;script&gt;&quot;&amp;"));
    assert!(!text.as_str().contains('\u{1}') && text.as_str().contains('…'));
    assert_eq!(text.as_str().matches("<text").count(), text.as_str().matches("</text>").count());
}

#[test]
fn the_same_data_give_the_same_bytes() {
    let make = || chart(vec![Series::new("a", (1..300).map(|i| (f64::from(i), f64::from(i).sqrt())))]).svg().unwrap();
    assert_eq!(make(), make());
}

#[test]
fn what_cannot_be_drawn_is_an_error() {
    assert!(matches!(chart(vec![]).svg(), Err(PlotError::Empty { .. })));
    let none: [(f64, f64); 0] = [];
    assert!(matches!(chart(vec![Series::new("s", none)]).svg(), Err(PlotError::Empty { what }) if what.contains('s')));
    for bad in [(f64::NAN, 1.0, 0.0), (1.0, f64::INFINITY, 0.0), (1.0, 1.0, f64::NAN), (1.0, 1.0, -1.0)] {
        let found = chart(vec![Series::new("s", [(0.0, 0.0, 0.0), bad])]).svg();
        assert!(matches!(found, Err(PlotError::Value { index: 1, .. })), "{bad:?}");
    }
    let mut log = chart(vec![Series::new("s", [(1.0, 1.0), (0.0, 1.0)])]);
    log.svg().unwrap();
    log.x.log = true;
    assert!(matches!(log.svg(), Err(PlotError::Value { index: 1, value: 0.0, .. })));
}

#[test]
fn points_far_apart_alike_or_alone_are_drawn() {
    for points in [
        vec![(3.0, 3.0)],
        vec![(1.0, 5.0), (2.0, 5.0)],
        vec![(0.0, -1e300), (1e-300, 1e300)],
        vec![(1e15, 1e15), (1e15 + 1.0, 1e15)],
        vec![(-1e9, 0.0), (1e9, 1e-9)],
    ] {
        let svg = chart(vec![Series::new("s", points.clone())]).svg().unwrap();
        assert!(!svg.as_str().contains("NaN") && !svg.as_str().contains("inf"), "{points:?}");
        assert_eq!(svg.as_str().matches("<circle").count(), points.len());
    }
}

#[test]
fn shots_have_their_ticks_and_bars() {
    let shots = [1.0, 2.0, 4.0, 8.0, 16.0];
    let series = Series::new("CoOp", shots.map(|x| (x, 50.0 + x, 1.5)));
    let axis = Axis::log("shots").with_ticks(shots);
    let draw = |series| {
        let y = Axis::linear("top-1").with_ticks([55.0, 60.0]);
        Chart { x: axis.clone(), y, ..chart(vec![series]) }.svg().unwrap()
    };
    let svg = draw(series);
    let texts = texts(&svg);
    assert!(["1", "2", "4", "8", "16"].iter().all(|tick| texts.iter().any(|text| text == tick)), "{texts:?}");
    // Equal factors, equal distances.
    let places = attributes(&svg, "circle", "cx");
    let steps: Vec<f64> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(steps.len(), 4);
    assert!(steps.iter().all(|step| (step - steps[0]).abs() <= 1.0 && *step > 50.0), "{steps:?}");
    let with = svg.as_str().matches("<polyline").count();
    let bare = Series::new("CoOp", shots.map(|x| (x, 50.0 + x)));
    let without = draw(bare).as_str().matches("<polyline").count();
    assert_eq!(with - without, 15); // a bar and two ends for each point
}

#[test]
fn ticks_are_round_numbers() {
    let ticks = |axis: &Axis, range: std::ops::Range<f64>| -> Vec<String> {
        axis.tick_places(&range).into_iter().map(|place| axis.text(place)).collect()
    };
    assert_eq!(ticks(&Axis::linear(""), 0.0..1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    assert_eq!(ticks(&Axis::linear(""), -3.0..27.0), ["0", "5", "10", "15", "20", "25"]);
    assert_eq!(ticks(&Axis::log(""), -1.0..1.0), ["0.1", "0.2", "0.5", "1", "2", "5", "10"]);
    assert_eq!(ticks(&Axis::log(""), -6.0..0.0).len(), 7);
}

fn counted(classes: usize, pairs: &[(usize, usize)]) -> Confusion {
    let mut confusion = Confusion::new(classes);
    pairs.iter().for_each(|(target, predicted)| confusion.add(*target, *predicted).unwrap());
    confusion
}

#[test]
fn a_confusion_matrix_has_its_names_and_the_shares_of_its_rows() {
    let matrix = counted(3, &[(0, 0), (0, 1), (0, 1), (0, 1), (1, 1)]);
    let svg = confusion("emoji", &matrix, &["a<b", "c", "d"]).unwrap();
    let texts = texts(&svg);
    let count = |text: &str| texts.iter().filter(|found| *found == text).count();
    assert_eq!(["25", "75", "100", "a&lt;b", "c", "d", "emoji"].map(count), [1, 1, 1, 2, 2, 2, 1]);
    // The sheet, the frame and three cells.
    assert_eq!(svg.as_str().matches("<rect").count(), 5);
    assert_eq!(svg, confusion("emoji", &matrix, &["a<b", "c", "d"]).unwrap());
}

#[test]
fn any_number_of_classes_fits() {
    for classes in [1, 2, 45, 1000] {
        let pairs: Vec<_> = (0..classes).map(|i| (i, (i + 1) % classes)).collect();
        let names: Vec<String> = (0..classes).map(|i| format!("class {i}")).collect();
        let svg = confusion("many", &counted(classes, &pairs), &names).unwrap();
        let width = attributes(&svg, "svg", "width")[0];
        assert_eq!(svg.as_str().matches("<rect").count(), classes + 2);
        let ends: Vec<f64> =
            attributes(&svg, "rect", "x").iter().zip(attributes(&svg, "rect", "width")).map(|(x, w)| x + w).collect();
        assert!(ends.iter().all(|end| *end <= width), "{classes}");
    }
    let names = ["a", "b"];
    assert!(matches!(confusion("", &counted(3, &[(0, 0)]), &names), Err(PlotError::Names { names: 2, classes: 3 })));
    assert!(matches!(confusion("", &counted(2, &[]), &names), Err(PlotError::Empty { .. })));
    let nobody: [&str; 0] = [];
    assert!(matches!(confusion("", &Confusion::new(0), &nobody), Err(PlotError::Empty { .. })));
}

#[test]
fn files_are_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let svg = chart(vec![Series::new("s", [(0.0, 0.0)])]).svg().unwrap();
    let path = folder.path().join("chart.svg");
    svg.write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), svg.as_str());
    let missing = folder.path().join("no/chart.svg");
    assert!(matches!(svg.write(&missing), Err(PlotError::Io { path, .. }) if path == missing));
}
