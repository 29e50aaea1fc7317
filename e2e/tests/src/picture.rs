//! A picture of one change of mode: phases, throughput and the longest gap
//! over time, as SVG for light and dark pages.

use std::fmt::Write;

use serde_json::Value;

use crate::{load::Report, rollout::Version};

/// Size and margins in pixels.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
/// Top and height of each panel.
const PHASES: (f64, f64) = (58.0, 34.0);
const THROUGHPUT: (f64, f64) = (122.0, 130.0);
const GAPS: (f64, f64) = (286.0, 100.0);

/// Colours by class, so that simple renderers know them too.
const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #1f2430 }
.page { fill: #ffffff } .title { font-size: 15px; font-weight: 600 } .faint { fill: #6b7280 }
.end { text-anchor: end } .mid { text-anchor: middle } .small { font-size: 9px }
.rule { stroke: #d9dde3 } .cut { stroke: #b6bcc6; stroke-dasharray: 3 3 }
.flow { fill: none; stroke: #2563eb; stroke-width: 1.5 } .under { fill: #2563eb; fill-opacity: 0.13 }
.gap { fill: #b45309 } .limit { stroke: #dc2626; stroke-dasharray: 6 4 } .usual { fill: #dc2626 }
.p0 { fill: #e5e7eb } .p1 { fill: #fde68a } .p2 { fill: #fdba74 } .p3 { fill: #93c5fd } .p4 { fill: #86efac }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ee } .page { fill: #0d1117 } .faint { fill: #9aa4b2 }
.rule { stroke: #2d333d } .cut { stroke: #4b5360 }
.flow { stroke: #79b0ff } .under { fill: #79b0ff }
.gap { fill: #f0b060 } .limit { stroke: #ff7b72 } .usual { fill: #ff7b72 }
.p0 { fill: #30363d } .p1 { fill: #5c4a12 } .p2 { fill: #6b3d14 } .p3 { fill: #1d406e } .p4 { fill: #1c5130 }
}";

/// When a phase began, in seconds from the beginning of the load, and its name.
pub type PhaseMark = (f64, String);

/// The phases that versions of the ClusterNetwork went through. The one that
/// was there before is at 0.
pub fn steps(versions: &[Version], began: u64) -> Vec<PhaseMark> {
    let mut steps: Vec<PhaseMark> = Vec::new();
    for (at, network) in versions {
        let phase = &network["status"]["epoch"]["phase"];
        let Value::String(phase) = phase else {
            continue;
        };
        if steps.last().is_none_or(|(_, last)| last != phase) {
            steps.push((seconds(at.saturating_sub(began)), phase.clone()));
        }
    }
    steps
}

fn seconds(nanoseconds: u64) -> f64 {
    std::time::Duration::from_nanos(nanoseconds).as_secs_f64()
}

/// A number that looks good at the end of an axis, at least `value`.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-9).log10().floor());
    let nice = [1.0, 2.0, 2.5, 5.0, 10.0].map(|n| n * power);
    nice.into_iter().find(|n| *n >= value).unwrap_or(value)
}

struct Canvas {
    text: String,
    /// Seconds shown.
    time: f64,
}

impl Canvas {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds.clamp(0.0, self.time) / self.time * (WIDTH - LEFT - RIGHT)
    }

    fn add(&mut self, line: &str) {
        let _infallible = writeln!(self.text, "{line}");
    }

    /// A horizontal rule with what it stands for.
    fn rule(&mut self, y: f64, word: &str) {
        let right = WIDTH - RIGHT;
        self.add(&format!(
            r#"<line class="rule" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/><text class="faint end" x="{:.1}" y="{:.1}">{word}</text>"#,
            LEFT - 8.0,
            y + 4.0
        ));
    }

    fn phases(&mut self, steps: &[PhaseMark]) {
        let (top, height) = PHASES;
        for (index, (from, name)) in steps.iter().enumerate() {
            let to = steps.get(index + 1).map_or(self.time, |(at, _)| *at);
            let (x, width) = (self.x(*from), self.x(to) - self.x(*from));
            let colour = ["Preflight", "Prepare", "Switch", "Finalize"]
                .iter()
                .position(|p| p == name)
                .map_or(0, |p| p + 1);
            self.add(&format!(
                r#"<rect class="p{colour}" x="{x:.1}" y="{top}" width="{width:.1}" height="{height}"/>"#
            ));
            // A word that has no room stands below, small.
            let roomy = width > 7.5 * f64::from(u32::try_from(name.len()).unwrap_or(0));
            let middle = x + width / 2.0;
            let (y, class) = if roomy {
                (top + height / 2.0 + 4.0, "mid")
            } else {
                (top + height + 12.0, "mid small")
            };
            self.add(&format!(
                r#"<text class="{class}" x="{middle:.1}" y="{y:.1}">{name}</text>"#
            ));
            if index > 0 {
                let bottom = GAPS.0 + GAPS.1;
                self.add(&format!(
                    r#"<line class="cut" x1="{x:.1}" x2="{x:.1}" y1="{top}" y2="{bottom}"/>"#
                ));
            }
        }
    }

    fn seconds_axis(&mut self) {
        let bottom = GAPS.0 + GAPS.1;
        // A dozen words at most have room.
        let steps = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
        let step = steps.into_iter().find(|s| self.time / s <= 12.0);
        let step = step.unwrap_or(300.0);
        let mut second = 0.0;
        while second <= self.time {
            let x = self.x(second);
            self.add(&format!(
                r#"<text class="faint mid" x="{x:.1}" y="{:.1}">{second} s</text>"#,
                bottom + 18.0
            ));
            second += step;
        }
    }
}

/// Draws what became of a load and the phases that passed meanwhile.
pub fn draw(title: &str, report: &Report, steps: &[PhaseMark]) -> String {
    let line = report.timeline(|_| true);
    // The last moment is cut short by the end of the load.
    let line = &line[..line.len().saturating_sub(1)];
    let mut canvas = Canvas {
        text: format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             role=\"img\" aria-label=\"{title}\">\n<style>\n{STYLE}\n</style>\n\
             <rect width=\"100%\" height=\"100%\" class=\"page\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"24\">{title}</text>\n\
             <text class=\"faint\" x=\"{LEFT}\" y=\"43\">{}</text>\n",
            report.figure()
        ),
        time: f64::from(u32::try_from(line.len()).unwrap_or(u32::MAX)).max(1.0) / 10.0,
    };
    canvas.phases(steps);
    throughput(&mut canvas, line);
    gaps(&mut canvas, line, report);
    canvas.seconds_axis();
    canvas.text.push_str("</svg>\n");
    canvas.text
}

/// The middle of a moment, in seconds.
fn middle(index: usize) -> f64 {
    (f64::from(u32::try_from(index).unwrap_or(u32::MAX)) + 0.5) / 10.0
}

fn throughput(canvas: &mut Canvas, line: &[(f64, std::time::Duration)]) {
    let (top, height) = THROUGHPUT;
    let megabits = |octets: f64| octets * 8.0 / 1e6;
    let highest = line.iter().map(|(o, _)| megabits(*o)).fold(1.0, f64::max);
    let scale = round_up(highest);
    let bottom = top + height;
    canvas.add(&format!(
        r#"<text x="{LEFT}" y="{:.1}">throughput of all flows, payload, Mbit/s</text>"#,
        top - 8.0
    ));
    canvas.rule(top, &format!("{scale}"));
    canvas.rule(top + height / 2.0, &format!("{}", scale / 2.0));
    canvas.rule(bottom, "0");
    let mut path = String::new();
    let mut last = LEFT;
    for (index, (octets, _)) in line.iter().enumerate() {
        let x = canvas.x(middle(index));
        let y = bottom - megabits(*octets) / scale * height;
        let _infallible = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { " L" });
        last = x;
    }
    let first = canvas.x(middle(0));
    canvas.add(&format!(
        r#"<path class="under" d="{path} L{last:.1} {bottom} L{first:.1} {bottom} Z"/>"#
    ));
    canvas.add(&format!(r#"<path class="flow" d="{path}"/>"#));
}

fn gaps(canvas: &mut Canvas, line: &[(f64, std::time::Duration)], report: &Report) {
    let (top, height) = GAPS;
    let bottom = top + height;
    let usual = report.limit.usual.as_secs_f64() * 1000.0;
    let millis = |gap: &std::time::Duration| gap.as_secs_f64() * 1000.0;
    let longest = line.iter().map(|(_, g)| millis(g)).fold(usual, f64::max);
    let scale = round_up(longest * 1.05);
    canvas.add(&format!(
        r#"<text x="{LEFT}" y="{:.1}">longest gap of any flow, ms</text>"#,
        top - 8.0
    ));
    canvas.rule(top, &format!("{scale}"));
    canvas.rule(bottom, "0");
    for (index, (_, gap)) in line.iter().enumerate() {
        let tall = (millis(gap) / scale * height).max(0.5);
        let (from, to) = (
            canvas.x(middle(index) - 0.04),
            canvas.x(middle(index) + 0.04),
        );
        canvas.add(&format!(
            r#"<rect class="gap" x="{from:.1}" y="{:.1}" width="{:.1}" height="{tall:.1}"/>"#,
            bottom - tall,
            to - from
        ));
    }
    let y = bottom - usual / scale * height;
    let right = WIDTH - RIGHT;
    canvas.add(&format!(
        r#"<line class="limit" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/><text class="usual end" x="{right}" y="{:.1}">usual up to {usual:.0} ms</text>"#,
        y - 5.0
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, end) in [(0.9, 1.0), (52.0, 100.0), (21.0, 25.0), (50.0, 50.0)] {
            assert!((round_up(value) - end).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn a_phase_begins_where_it_is_first_seen() {
        let version = |at: u64, phase: &str| {
            (
                at * 1_000_000_000,
                json!({"status": {"epoch": {"phase": phase}}}),
            )
        };
        let versions = [
            version(9, "Ready"),
            version(12, "Preflight"),
            version(13, "Preflight"),
            version(14, "Prepare"),
        ];
        let steps = steps(&versions, 10_000_000_000);
        let names: Vec<&str> = steps.iter().map(|(_, n)| n.as_str()).collect();
        assert_eq!(names, ["Ready", "Preflight", "Prepare"]);
        assert!((steps[1].0 - 2.0).abs() < 1e-9 && steps[0].0.abs() < 1e-9);
    }
}
