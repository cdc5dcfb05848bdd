use super::*;

/// Fourteen trials: the heuristic's, twelve that were measured, one that was rejected.
fn history() -> Vec<Trial> {
    let mut trials = vec![measured(problem().heuristic, 1.0)];
    trials.extend((0..12).map(|it| measured(good(it), 0.9 + 0.02 * it as f64)));
    trials.push(rejected(good(99), "the kernel wrote\nbeyond its buffer"));
    trials
}

fn question(history: &[Trial], reasons: &[String]) -> String {
    let (problem, knobs) =
        (problem(), serde_json::json!([{ "kernel": "matmul", "knobs": [{ "name": "mr", "values": [1, 8] }] }]));
    let schema = answer::schema(&problem);
    let told = Told { problem: &problem, knobs: &knobs, schema: &schema, history, reasons, fruitless: 0, wanted: 4 };
    told.messages().into_iter().map(|it| format!("[{}]\n{}\n", it.role, it.content)).collect()
}

#[test]
fn a_question_for_a_matmul_on_a_cpu() {
    insta::assert_snapshot!(question(&history(), &["`schedules[0].mr` must be a whole number, not a text".to_owned()]));
}

#[test]
fn equal_histories_are_equal_questions() {
    assert_eq!(question(&history(), &[]), question(&history(), &[]));
    assert_ne!(question(&history(), &[]), question(&history()[1..], &[]));
    assert_ne!(question(&history(), &[]), question(&history(), &["x".to_owned()]));
}

#[test]
fn a_question_has_no_name_and_no_text_of_the_project() {
    assert!(!question(&history(), &[]).contains("secret"));
}

#[test]
fn a_question_is_bounded_whatever_happened() {
    let many: Vec<_> = (0..5000).map(|it| rejected(good(it), &"x".repeat(10_000))).collect();
    let reasons = vec!["y".repeat(10_000); 5000];
    let length = question(&many, &reasons).len();
    assert!(length < 20_000, "{length}");
}
