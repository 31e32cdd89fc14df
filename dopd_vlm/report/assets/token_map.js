"use strict";
/* Token maps: one probe and one moment at a time. Everything from the run enters as text, never as HTML. */
function tokenMaps(root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const {strings, probes, paints} = data;
  const state = {probe: 0, step: 0, colour: "regime"};
  const find = name => root.querySelector(".tm-" + name);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (value, digits = 4) => value === null || value === undefined ? "-"
    : value !== 0 && Math.abs(value) < 0.01 ? value.toPrecision(2) : value.toFixed(digits);
  const share = value => value.toFixed(3);
  const percent = share => (100 * share).toFixed(0) + "%";
  const visible = text => text.replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5").replace(/^ | $/g, "\u00b7") || "\u2205";
  const current = () => probes[state.probe].maps[state.step];
  const outlier = {name: "outlier, left out", fill: "#dddddd", ink: "#000000"};
  const paintOf = (map, index) => paints[map.regime[index]] || outlier;
  const tip = find("tip");

  function fillView(name) {
    const view = probes[state.probe][name], box = find(name);
    box.replaceChildren(make("h4", "", name === "plain" ? "plain view: all that the student is given"
      : "privileged view: for scoring only"));
    for (const uri of view.images) {
      const image = make("img");
      image.alt = name + " image";
      image.onload = () => { if (Math.max(image.naturalWidth, image.naturalHeight) < 128) image.classList.add("tm-small"); };
      image.src = uri;
      box.append(image);
    }
    const prompt = make("pre"), at = view.context ? view.text.indexOf(view.context) : -1;
    prompt.tabIndex = 0;
    prompt.setAttribute("aria-label", name + " prompt");
    if (at < 0) prompt.textContent = view.text;
    else prompt.append(view.text.slice(0, at), make("mark", "", view.context), view.text.slice(at + view.context.length));
    box.append(prompt);
  }

  function fillLegend(map) {
    const box = find("legend");
    box.replaceChildren();
    if (!map.regime) {
      box.append(make("li", "", (data.every_token ? "every token: " + data.every_token
        : "this method does not route by gap") + ". Darker is a larger loss."));
      return;
    }
    if (state.colour === "loss") {
      box.append(make("li", "", "Darker is a larger loss (the unweighted divergence of the token)."));
      return;
    }
    paints.forEach((paint, kind) => {
      const item = make("li"), chip = make("b", "", paint.name);
      chip.style.cssText = `background:${paint.fill};color:${paint.ink}`;
      const share = map.regime.filter(r => r === kind).length / Math.max(1, map.regime.length);
      item.append(chip, `${percent(share)} ${paint.meaning}`);
      box.append(item);
    });
  }

  function fillFacts(map) {
    const parts = [`sample ${probes[state.probe].uid}`, `answer ${probes[state.probe].answer}`];
    if (map.correct !== null) parts.push(map.correct >= 1 ? "\u2713 right" : map.correct > 0 ? "partly right" : "\u2717 wrong");
    parts.push(`${map.length} tokens${map.finish_reason === "length" ? ", cut at the limit" : ""}`);
    if (map.length > map.tokens.length) parts.push(`the first ${map.tokens.length} are shown`);
    if (map.threshold) parts.push(`gap threshold ${number(map.threshold.gap)} nats (of the ` +
      (map.threshold.of === "batch" ? "training batch)" : "probes)"));
    find("facts").textContent = parts.join("  \u00b7  ");
  }

  function paint(node, map, index, most) {
    if (map.regime && state.colour === "regime") {
      const {fill, ink} = paintOf(map, index);
      node.style.cssText = `background:${fill};color:${ink}`;
      node.classList.toggle("tm-high", map.regime[index] >= 2);
    } else {
      const share = most > 0 ? Math.min(1, map.loss[index] / most) : 0;
      node.style.cssText = `background:rgba(106,61,154,${(0.06 + 0.94 * share).toFixed(3)});color:${share > .5 ? "#fff" : "#000"}`;
    }
  }

  function fillCompletion(map) {
    const box = find("completion"), most = Math.max(0, ...map.loss);
    box.replaceChildren();
    map.tokens.forEach((id, index) => {
      const text = strings[id], node = make("span", "tm-token", visible(text));
      node.setAttribute("role", "button");
      node.tabIndex = index ? -1 : 0;
      node.dataset.index = index;
      paint(node, map, index, most);
      node.setAttribute("aria-label", `${text}, ${map.regime ? paintOf(map, index).name : "token"} ${index + 1}`);
      box.append(node);
      if (text.includes("\n")) box.append("\n");
      else box.append("\u200b");
    });
    if (!map.tokens.length) box.textContent = "the completion is empty";
  }

  function top(title, entries, id) {
    const table = make("table"), caption = make("caption", "", title);
    table.append(caption);
    for (let at = 0; entries && at < entries.length; at += 2) {
      const row = make("tr", entries[at] === id ? "tm-chosen" : "");
      row.append(make("td", "", visible(strings[entries[at]])), make("td", "", share(entries[at + 1])));
      row.firstChild.title = strings[entries[at]];
      table.append(row);
    }
    if (!entries) table.append(make("tr")), table.lastChild.append(make("td", "", "not scored"));
    return table;
  }

  function fillTip(index) {
    const map = current(), id = map.tokens[index];
    const pick = column => map[column] ? map[column][index] : null;
    const title = make("h5", "", `${visible(strings[id])}  (token ${index + 1})`), list = make("dl");
    const rows = [["regime", map.regime ? paintOf(map, index).name : "-"], ["loss, nats", number(pick("loss"))],
      ["gap, nats", number(pick("gap"))], ["weight", number(pick("weight"), 2)],
      ["q_T", number(pick("q_teacher"))], ["gap threshold", map.threshold ? number(map.threshold.gap) : "-"],
      ["q_S", number(pick("q_self"))], ["q plain student", number(pick("q_plain"))]];
    for (const [name, value] of rows) {
      const cell = make("dd", "", value);
      cell.dataset.name = name;
      list.append(make("dt", "", name), cell);
    }
    const tops = make("div", "tm-tops");
    for (const [name, heading] of [["student", "student plain"], ["self_target", "self-target"],
      ["teacher", "teacher"]])
      tops.append(top(heading, map.top[name] ? map.top[name][index] : null, id));
    tip.replaceChildren(title, list, tops);
  }

  function showTip(node) {
    root.querySelectorAll(".tm-shown").forEach(other => other.classList.remove("tm-shown"));
    node.classList.add("tm-shown");
    fillTip(Number(node.dataset.index));
    tip.hidden = false;
    placeTip();
  }

  function placeTip() {
    const node = find("shown");
    if (tip.hidden || !node) return;
    const box = node.getBoundingClientRect(), size = tip.getBoundingClientRect();
    // On a narrow screen the box fills one half, the one where the token is not: it must not cover what is tapped.
    tip.classList.toggle("tm-above", box.top > innerHeight / 2 - 20);
    const below = box.bottom + 6 + size.height < innerHeight || box.top < size.height + 6;
    tip.style.top = (below ? box.bottom + 6 : box.top - size.height - 6) + "px";
    tip.style.left = Math.max(8, Math.min(box.left, innerWidth - size.width - 8)) + "px";
  }

  function hideTip() {
    tip.hidden = true;
    root.querySelectorAll(".tm-shown").forEach(node => node.classList.remove("tm-shown"));
  }

  function show() {
    const {maps} = probes[state.probe], slider = find("slider");
    state.step = Math.min(state.step, maps.length - 1);
    slider.max = maps.length - 1;
    slider.value = state.step;
    slider.disabled = maps.length < 2;
    slider.setAttribute("aria-valuetext", `step ${maps[state.step].step}`);
    find("step").textContent = `step ${maps[state.step].step} (${state.step + 1} of ${maps.length})`;
    hideTip();
    fillView("plain");
    fillView("privileged");
    fillLegend(current());
    fillFacts(current());
    fillCompletion(current());
  }

  function move(node, key) {
    const nodes = [...root.querySelectorAll(".tm-token")], at = nodes.indexOf(node);
    const goal = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: nodes.length - 1}[key];
    if (goal === undefined || !nodes[goal]) return false;
    node.tabIndex = -1;
    nodes[goal].tabIndex = 0;
    nodes[goal].focus();
    return true;
  }

  probes.forEach((probe, index) => find("probe").append(new Option(`${index + 1}: ${probe.uid}`, index)));
  find("probe").onchange = event => { state.probe = Number(event.target.value); show(); };
  find("slider").oninput = event => { state.step = Number(event.target.value); show(); };
  find("colour").onchange = event => { state.colour = event.target.value; show(); };
  find("colour").disabled = !probes.some(probe => probe.maps.some(map => map.regime));
  const completion = find("completion"), token = event => event.target.closest(".tm-token");
  completion.addEventListener("mouseover", event => token(event) && showTip(token(event)));
  completion.addEventListener("mouseleave", () => { if (!completion.contains(document.activeElement)) hideTip(); });
  completion.addEventListener("focusin", event => token(event) && showTip(token(event)));
  completion.addEventListener("focusout", hideTip);
  completion.addEventListener("click", event => token(event) && token(event).focus());
  completion.addEventListener("keydown", event => {
    if (event.key === "Escape") hideTip();
    else if (token(event) && move(token(event), event.key)) event.preventDefault();
  });
  addEventListener("scroll", placeTip, {passive: true});
  addEventListener("resize", placeTip);
  state.step = Math.max(...probes.map(probe => probe.maps.length)) - 1;
  show();
}
document.querySelectorAll(".tm:not([data-ready])").forEach(root => { root.dataset.ready = "1"; tokenMaps(root); });
