//! The graph as one HTML page: a table that needs no network and no script, and a filter for those who have one.

use super::{Decision, Graph, History, StaleReason, causes::roots};
use jiff::Timestamp;
use minijinja::{Environment, value::Serde};
use serde::Serialize;

/// What is recorded of a step's last success.
#[derive(Debug, Clone, Copy)]
pub struct Last {
    pub wall_us: u64,
    /// Seconds since 1970.
    pub finished_unix: u64,
}

/// What the template shows.
#[derive(Serialize)]
struct Page<'a> {
    project: &'a str,
    steps: Vec<Row>,
    up_to_date: usize,
    stale: usize,
    may_be_stale: usize,
}

/// One row of the table.
#[derive(Serialize)]
struct Row {
    block: String,
    step: String,
    state: &'static str,
    class: &'static str,
    took: String,
    finished: String,
    cause: String,
}

/// `last` has one entry for each step. Names come from files and may be anything: the template escapes every value, and no value
/// goes into the script.
pub fn html(
    project: &str,
    graph: &Graph,
    decisions: &[Decision],
    last: &[Option<Last>],
    history: &impl History,
) -> Result<String, minijinja::Error> {
    let roots = roots(graph, decisions, history, |_| true);
    let mut counts = [0; 3];
    let row = |((step, decision), last): ((&super::Step, &Decision), &Option<Last>)| {
        let (class, count) = match decision {
            Decision::UpToDate { .. } => ("up-to-date", 0),
            Decision::Stale { .. } => ("stale", 1),
            Decision::Unknown { .. } => ("may-be-stale", 2),
        };
        counts[count] += 1;
        let cause = roots.of(step.id).map_or_else(String::new, |(root, reason)| match reason {
            StaleReason::NeverBuilt if decision.is_up_to_date() => "ran when it was new".to_owned(),
            reason if root == step.id => reason.to_string(),
            reason => format!("{}: {reason}", graph.step(root).identity()),
        });
        let (block, name) = step.identity().rsplit_once(':').unwrap_or((step.identity(), ""));
        Row {
            block: block.to_owned(),
            step: name.to_owned(),
            state: decision.name(),
            class,
            took: last.map_or_else(String::new, |it| format!("{:.1} ms", it.wall_us as f64 / 1e3)),
            finished: last.map_or_else(String::new, |it| date(it.finished_unix)),
            cause,
        }
    };
    let steps: Vec<_> = graph.steps().iter().zip(decisions).zip(last).map(row).collect();
    let [up_to_date, stale, may_be_stale] = counts;
    let page = Page { project, steps, up_to_date, stale, may_be_stale };
    let mut environment = Environment::new();
    // The name's ending turns escaping on.
    environment.add_template("page.html", include_str!("page.html"))?;
    environment.get_template("page.html")?.render(Serde(&page))
}

/// UTC, as in `2026-01-31T12:00:00Z`.
fn date(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|it| Timestamp::from_second(it).ok());
    time.map_or_else(String::new, |it| it.to_string())
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{Past, block, build, graph, outputs, transformer},
        *,
    };
    use crate::manifest::Strategy;

    fn rows(page: &str) -> Vec<&str> {
        page.lines().filter(|it| it.starts_with("<tr data-state")).collect()
    }

    #[test]
    fn each_step_has_its_row_with_status_figures_and_cause() {
        let mut blocks = vec![block("gpt2", transformer())];
        let mut past = Past::default();
        build(&graph(&blocks), &mut past, |step, parts| outputs(step, parts, &[]));
        blocks[0].tuning.strategy = Strategy::Random;
        let graph = graph(&blocks);
        let decisions = graph.status(&past, |_| false);
        let mut last = vec![Some(Last { wall_us: 1500, finished_unix: 1_700_000_000 }); graph.len()];
        last[5] = None;
        let page = html("test", &graph, &decisions, &last, &past).unwrap();
        insta::assert_snapshot!(rows(&page).join("\n"), @r#"
        <tr data-state="up-to-date"><td>gpt2@cpu</td><td>ir</td><td class="up-to-date">up to date</td><td class="number">1.5 ms</td><td>2023-11-14T22:13:20Z</td><td>ran when it was new</td></tr>
        <tr data-state="stale"><td>gpt2@cpu</td><td>plan</td><td class="stale">stale</td><td class="number">1.5 ms</td><td>2023-11-14T22:13:20Z</td><td>`strategy` changed from heuristic to random</td></tr>
        <tr data-state="may-be-stale"><td>gpt2@cpu</td><td>compile</td><td class="may-be-stale">may be stale</td><td class="number">1.5 ms</td><td>2023-11-14T22:13:20Z</td><td>gpt2@cpu:plan: `strategy` changed from heuristic to random</td></tr>
        <tr data-state="may-be-stale"><td>gpt2@cpu</td><td>verify</td><td class="may-be-stale">may be stale</td><td class="number">1.5 ms</td><td>2023-11-14T22:13:20Z</td><td>gpt2@cpu:plan: `strategy` changed from heuristic to random</td></tr>
        <tr data-state="may-be-stale"><td>gpt2@cpu</td><td>benchmark</td><td class="may-be-stale">may be stale</td><td class="number">1.5 ms</td><td>2023-11-14T22:13:20Z</td><td>gpt2@cpu:plan: `strategy` changed from heuristic to random</td></tr>
        <tr data-state="may-be-stale"><td>gpt2@cpu</td><td>report</td><td class="may-be-stale">may be stale</td><td class="number"></td><td></td><td>gpt2@cpu:plan: `strategy` changed from heuristic to random</td></tr>
        "#);
        assert!(page.contains("<p>6 steps: 1 up to date, 1 stale, 4 may be stale.</p>"), "{page}");
        assert!(!page.contains("http"), "nothing is loaded from elsewhere");
    }

    #[test]
    fn a_name_that_is_markup_is_shown_and_not_obeyed() {
        let evil = "</td><script>alert('1')</script>\"&";
        let graph = graph(&[block(evil, transformer())]);
        let decisions = graph.status(&Past::default(), |_| false);
        let page = html(evil, &graph, &decisions, &vec![None; graph.len()], &Past::default()).unwrap();
        assert_eq!(page.matches("<script").count(), 1, "only the page's own: {page}");
        assert_eq!(page.matches("</td>").count(), 6 * 6);
        assert!(page.contains("&lt;script&gt;alert(&#x27;1&#x27;)"), "{page}");
    }
}
