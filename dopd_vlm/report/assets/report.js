"use strict";
/* Draws every .plot from the JSON beside it, with one base layout for all. */
const narrow = () => innerWidth < 640;
function baseLayout() {
  return {
    template: {layout: {
      font: {family: "system-ui, sans-serif", size: narrow() ? 11 : 13, color: "#1a1a1a"},
      paper_bgcolor: "#fff", plot_bgcolor: "#fff", hovermode: "x unified",
      xaxis: {gridcolor: "#eee", zerolinecolor: "#ccc", linecolor: "#888", automargin: true},
      yaxis: {gridcolor: "#eee", zerolinecolor: "#ccc", linecolor: "#888", automargin: true},
    }},
    margin: {l: 50, r: 14, t: 30, b: 40},
    legend: {orientation: "h", x: 0, y: 1.02, yanchor: "bottom"},
    height: 340,
  };
}
function draw() {
  for (const plot of document.querySelectorAll(".plot")) {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    Plotly.newPlot(plot, figure.data, {...baseLayout(), ...figure.layout},
      {responsive: true, displaylogo: false, displayModeBar: narrow() ? false : "hover"});
  }
}
draw();
