//! Draws SVG plots with plotters.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::figures::Plot;

/// The width and the height of a plot, in pixels.
const SIZE: (u32, u32) = (760, 420);

/// Draws a plot into a file.
///
/// # Errors
/// If there are too few points, or the file cannot be written.
pub fn draw(plot: &Plot, path: &Path) -> Result<()> {
    let points = || plot.curves.iter().flat_map(|curve| &curve.points);
    let most = |values: &dyn Fn(&(f64, f64)) -> f64| points().map(values).fold(f64::NAN, f64::max);
    let least = points().map(|point| point.0).fold(f64::NAN, f64::min);
    let (right, top) = (most(&|point| point.0), most(&|point| point.1));
    if !(least.is_finite() && right > least && top.is_finite()) {
        return Err(anyhow!("{}: there are not enough points to draw", plot.name));
    }
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", path.display());
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((least..right).log_scale().base(2.0), 0.0..top * 1.1)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc(plot.x)
        .y_desc(plot.y)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()
        .map_err(|error| failed(&error))?;
    for (index, curve) in plot.curves.iter().enumerate() {
        let colour = Palette99::pick(index).stroke_width(2);
        chart
            .draw_series(LineSeries::new(curve.points.iter().copied(), colour).point_size(3))
            .map_err(|error| failed(&error))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.4))
        .position(SeriesLabelPosition::LowerRight)
        .draw()
        .map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}
