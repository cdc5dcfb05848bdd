//! Wrong shaders: one mistake in one line of WGSL, in a function that the entry point reaches.

use std::collections::BTreeSet;

/// One way to get a line wrong: its name, what it does in words, and every line that it makes of a right one.
pub struct Rule {
    pub name: &'static str,
    pub description: &'static str,
    apply: fn(&str) -> Vec<String>,
}

/// All ways.
pub const RULES: &[Rule] = &[
    Rule { name: "less-to-less-equal", description: "`<=` for `<`", apply: |it| conditions(it, " < ", " <= ") },
    Rule { name: "less-equal-to-less", description: "`<` for `<=`", apply: |it| conditions(it, " <= ", " < ") },
    Rule { name: "greater-to-greater-equal", description: "`>=` for `>`", apply: |it| conditions(it, " > ", " >= ") },
    Rule { name: "greater-equal-to-greater", description: "`>` for `>=`", apply: |it| conditions(it, " >= ", " > ") },
    Rule { name: "guard-dropped", description: "a condition always holds", apply: |it| guard(it, "true") },
    Rule { name: "branch-dropped", description: "a condition never holds", apply: |it| guard(it, "false") },
    Rule {
        name: "barrier-dropped",
        description: "no barrier",
        apply: |it| if it.trim() == "workgroupBarrier();" { vec![String::new()] } else { Vec::new() },
    },
    Rule { name: "plus-to-minus", description: "`-` for `+`", apply: |it| each(it, " + ", " - ") },
    Rule { name: "minus-to-plus", description: "`+` for `-`", apply: |it| each(it, " - ", " + ") },
    Rule { name: "times-to-plus", description: "`+` for `*`", apply: |it| each(it, " * ", " + ") },
    Rule {
        name: "sum-lost",
        description: "a multiply-add that does not add",
        apply: |it| calls(it, "fma", |a| format!("(({}) * ({}))", a[0], a[1]), 3),
    },
    Rule { name: "half-precision", description: "a sum is kept in half precision", apply: half_precision },
    Rule { name: "choice-swapped", description: "the other one of two values is chosen", apply: choice_swapped },
    Rule {
        name: "roles-swapped",
        description: "the operands of a cooperative product are swapped",
        apply: |it| calls(it, "coopMultiplyAdd", |a| format!("coopMultiplyAdd({}, {}, {})", a[1], a[0], a[2]), 3),
    },
    Rule { name: "max-to-min", description: "`min` for `max`", apply: |it| each(it, "max(", "min(") },
    Rule { name: "min-to-max", description: "`max` for `min`", apply: |it| each(it, "min(", "max(") },
    Rule { name: "loop-one-less", description: "a loop stops one step early", apply: |it| bound(it, -1) },
    Rule { name: "loop-one-more", description: "a loop goes one step too far", apply: |it| bound(it, 1) },
    Rule { name: "index-plus-1", description: "a constant in an index is one too large", apply: |it| indices(it) },
    Rule { name: "store-dropped", description: "an element is not stored", apply: store_dropped },
    Rule { name: "update-dropped", description: "a value is not brought up to date", apply: update_dropped },
    Rule { name: "x-to-y", description: "the other coordinate", apply: |it| each(it, ".x", ".y") },
    Rule { name: "y-to-x", description: "the other coordinate", apply: |it| each(it, ".y", ".x") },
];

/// A mistake in a shader: the line's number and which of the rule's lines it is.
pub struct Place {
    pub line: usize,
    pub choice: usize,
}

/// The places of a text that a rule applies to: the first and the last `limit` ones, because shaders repeat themselves where
/// loops are written out.
pub fn places(source: &str, rule: &Rule, limit: usize) -> Vec<Place> {
    let reached = reached(source);
    let mut all = Vec::new();
    for (line, text) in source.lines().enumerate().filter(|it| reached.contains(&it.0)) {
        let made = (rule.apply)(code(text)).len();
        all.extend((0..made).map(|choice| Place { line, choice }));
    }
    if all.len() > 2 * limit {
        all.drain(limit..all.len() - limit);
    }
    all
}

/// The text with the mistake; `None` where the rule does not fit there.
pub fn apply(source: &str, rule: &Rule, place: &Place) -> Option<String> {
    let mut lines: Vec<String> = source.lines().map(str::to_owned).collect();
    let line = lines.get_mut(place.line)?;
    *line = (rule.apply)(code(line)).into_iter().nth(place.choice)?;
    Some(lines.join("\n") + "\n")
}

/// The text with a probe before the line: an element of another buffer, at this binding, that is written when the line is
/// reached.
pub fn probed(source: &str, line: usize, binding: usize) -> Option<String> {
    let mut lines: Vec<&str> = source.lines().collect();
    if line >= lines.len() {
        return None;
    }
    lines.insert(line, "    probe[0] = 1u;");
    let declared = format!("@group(0) @binding({binding}) var<storage, read_write> probe: array<u32>;");
    // Extensions come before everything else.
    let first = lines.iter().position(|it| it.starts_with("@group")).unwrap_or(0);
    lines.insert(first, &declared);
    Some(lines.join("\n") + "\n")
}

/// A line without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The lines of the bodies of all functions that `main` reaches.
fn reached(source: &str) -> BTreeSet<usize> {
    let lines: Vec<&str> = source.lines().collect();
    // Name and lines of every function; bodies end with a brace in the first column.
    let mut functions: Vec<(&str, std::ops::Range<usize>)> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some(rest) = line.strip_prefix("fn ") {
            let name = rest.split('(').next().unwrap_or_default();
            let length = lines[at..].iter().position(|it| *it == "}").unwrap_or(lines.len() - at);
            functions.push((name, at + 1..at + length));
        }
    }
    let (mut found, mut open) = (BTreeSet::new(), vec!["main"]);
    let mut reached = BTreeSet::new();
    while let Some(name) = open.pop() {
        if !found.insert(name) {
            continue;
        }
        for (_, body) in functions.iter().filter(|it| it.0 == name) {
            reached.extend(body.clone());
            let text = lines[body.clone()].join("\n");
            open.extend(functions.iter().map(|it| it.0).filter(|it| text.contains(&format!("{it}("))));
        }
    }
    reached
}

/// Each occurrence replaced on its own.
fn each(line: &str, from: &str, to: &str) -> Vec<String> {
    let places = line.match_indices(from).filter(|(at, _)| {
        // `fmax(` is no `max(`, and `.xyz` no `.x`.
        let before = line[..*at].chars().next_back();
        let after = line[at + from.len()..].chars().next();
        let word = |it: Option<char>| it.is_some_and(|it| it.is_alphanumeric() || it == '_');
        let longer = from.starts_with(|it: char| it.is_alphanumeric()) && word(before)
            || from.ends_with(|it: char| it.is_alphanumeric()) && word(after);
        !longer
    });
    places.map(|(at, _)| format!("{}{to}{}", &line[..at], &line[at + from.len()..])).collect()
}

/// Each occurrence of a comparison, where it decides something.
fn conditions(line: &str, from: &str, to: &str) -> Vec<String> {
    let decides = ["if ", "for ", "while ", "select(", "let "].iter().any(|it| line.contains(it));
    if decides { each(line, from, to) } else { Vec::new() }
}

/// An `if` with another condition.
fn guard(line: &str, condition: &str) -> Vec<String> {
    let trimmed = line.trim_start();
    if !trimmed.starts_with("if ") || !trimmed.ends_with('{') {
        return Vec::new();
    }
    vec![format!("{}if {condition} {{", &line[..line.len() - trimmed.len()])]
}

/// Each call of a function with `count` arguments, made into something else.
fn calls(line: &str, name: &str, make: impl Fn(&[&str]) -> String, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    for (at, _) in line.match_indices(&format!("{name}(")) {
        if line[..at].ends_with(|it: char| it.is_alphanumeric() || it == '_') {
            continue;
        }
        let open = at + name.len() + 1;
        if let Some((arguments, end)) = arguments(&line[open..])
            && arguments.len() == count
        {
            all.push(format!("{}{}{}", &line[..at], make(&arguments), &line[open + end..]));
        }
    }
    all
}

/// The arguments of a call whose parenthesis is open, and where it is closed.
fn arguments(text: &str) -> Option<(Vec<&str>, usize)> {
    let (mut depth, mut start, mut all) = (0usize, 0, Vec::new());
    for (at, it) in text.char_indices() {
        match it {
            '(' | '[' => depth += 1,
            ')' if depth == 0 => {
                all.push(text[start..at].trim());
                return Some((all, at + 1));
            }
            ')' | ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                all.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

/// A loop with a constant bound, one step longer or shorter.
fn bound(line: &str, by: i64) -> Vec<String> {
    if !line.trim_start().starts_with("for ") {
        return Vec::new();
    }
    let Some((head, tail)) = line.split_once(" < ") else { return Vec::new() };
    let digits = tail.find(|it: char| !it.is_ascii_digit()).unwrap_or(tail.len());
    let Ok(value) = tail[..digits].parse::<i64>() else { return Vec::new() };
    vec![format!("{head} < {}{}", (value + by).max(0), &tail[digits..])]
}

/// Each unsigned constant between brackets, one larger.
fn indices(line: &str) -> Vec<String> {
    let bytes = line.as_bytes();
    let (mut depth, mut at, mut all) = (0usize, 0, Vec::new());
    while at < bytes.len() {
        match bytes[at] {
            b'[' => depth += 1,
            b']' => depth = depth.saturating_sub(1),
            b'0'..=b'9' if depth > 0 => {
                let end = at + bytes[at..].iter().take_while(|it| it.is_ascii_digit()).count();
                let word =
                    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_' || bytes[at - 1] == b'.');
                if !word
                    && bytes.get(end) == Some(&b'u')
                    && let Ok(value) = line[at..end].parse::<u64>()
                {
                    all.push(format!("{}{}{}", &line[..at], value + 1, &line[end..]));
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    all
}

/// Not that of a corrected quotient or root and the device's own, which is within what WGSL promises and the bounds allow.
fn choice_swapped(line: &str) -> Vec<String> {
    if line.contains("corrected") {
        return Vec::new();
    }
    calls(line, "select", |a| format!("select({}, {}, {})", a[1], a[0], a[2]), 3)
}

/// `sum = fma(a, b, sum);` is rounded. Other multiply-adds may be corrections, whose own precision does not matter.
fn half_precision(line: &str) -> Vec<String> {
    let Some((name, value)) = line.trim().split_once(" = ") else { return Vec::new() };
    if !value.ends_with(&format!(", {name});")) {
        return Vec::new();
    }
    calls(line, "fma", |a| format!("quantizeToF16(fma({}, {}, {}))", a[0], a[1], a[2]), 3)
}

/// `name[...] = ...;` is left out.
fn store_dropped(line: &str) -> Vec<String> {
    let trimmed = line.trim();
    let Some((target, _)) = trimmed.split_once(" = ") else { return Vec::new() };
    let stores =
        target.ends_with(']') && trimmed.ends_with(';') && !target.starts_with("let ") && !target.starts_with("var ");
    if stores { vec![String::new()] } else { Vec::new() }
}

/// `name *= ...;`, `name += ...;` and `name = f(name, ...);` are left out.
fn update_dropped(line: &str) -> Vec<String> {
    let trimmed = line.trim();
    let compound = trimmed.contains(" *= ") || trimmed.contains(" += ");
    let again = trimmed.split_once(" = ").is_some_and(|(name, value)| {
        let plain = name.chars().all(|it| it.is_alphanumeric() || it == '_');
        plain && value.split(|it: char| !(it.is_alphanumeric() || it == '_')).any(|it| it == name)
    });
    let statement = trimmed.ends_with(';') && !trimmed.starts_with("for ");
    if statement && (compound || again) { vec![String::new()] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
fn unused(x: f32) -> f32 {
    return x + 1.0;
}
fn helper(x: f32) -> f32 {
    var total = 1.0;
    total = fma(x, x, total);
    return fma(x, 2.0, max(x, total));
}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var sum = 0.0;
    for (var i = 0u; i < 12u; i += 1u) { // not i < 13u
        sum += helper(tile[id.x + 3u]);
    }
    workgroupBarrier();
    if (id.x < 100u) {
        result[id.x] = select(sum, 0.0, id.y > 2u);
    }
}
";

    fn made(rule: &str) -> Vec<String> {
        let rule = RULES.iter().find(|it| it.name == rule).unwrap();
        let lines: Vec<&str> = SOURCE.lines().collect();
        let changed = |place: &Place| {
            let text = apply(SOURCE, rule, place).unwrap();
            let differing: Vec<_> =
                text.lines().zip(&lines).filter(|(a, b)| a != *b).map(|it| it.0.trim().to_owned()).collect();
            assert!(differing.len() <= 1, "{differing:?}");
            differing.concat()
        };
        places(SOURCE, rule, 10).iter().map(changed).collect()
    }

    #[test]
    fn each_rule_makes_one_mistake_in_code_that_is_reached() {
        assert_eq!(made("sum-lost"), ["total = ((x) * (x));", "return ((x) * (2.0));"]);
        assert_eq!(made("half-precision"), ["total = quantizeToF16(fma(x, x, total));"]);
        assert_eq!(made("max-to-min"), ["return fma(x, 2.0, min(x, total));"]);
        assert_eq!(made("loop-one-less"), ["for (var i = 0u; i < 11u; i += 1u) {"]);
        assert_eq!(made("plus-to-minus"), ["sum += helper(tile[id.x - 3u]);"]);
        assert_eq!(made("index-plus-1"), ["sum += helper(tile[id.x + 4u]);"]);
        assert_eq!(made("guard-dropped"), ["if true {"]);
        assert_eq!(made("barrier-dropped"), [""]);
        assert_eq!(made("store-dropped"), [""]);
        assert_eq!(made("update-dropped"), ["", ""]);
        assert_eq!(made("choice-swapped"), ["result[id.x] = select(0.0, sum, id.y > 2u);"]);
        assert_eq!(made("x-to-y").len(), 3);
        assert_eq!(made("less-to-less-equal").len(), 2);
        assert_eq!(made("greater-to-greater-equal"), ["result[id.x] = select(sum, 0.0, id.y >= 2u);"]);
    }

    #[test]
    fn of_many_places_the_first_and_the_last_are_taken() {
        let rule = RULES.iter().find(|it| it.name == "x-to-y").unwrap();
        assert_eq!(places(SOURCE, rule, 1).len(), 2);
    }
}
