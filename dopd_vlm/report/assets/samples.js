"use strict";
/* Cards of samples with filters and search. Everything from the evaluation enters as text, never as HTML. */
function sampleCards(root) {
  const PAGE = 20, SMALL = 64;
  const FILTERS = {
    task: sample => [sample.task],
    view: sample => [sample.view],
    verdict: sample => [sample.verdict],
    category: sample => [sample.category],
    rule: sample => sample.answers.map(answer => answer.rule.split(":")[0]),
  };
  const {samples, images} = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const find = name => root.querySelector("." + name);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const chosen = {}, search = make("input");
  let limit = PAGE;

  function labelled(name, control) {
    const label = make("label", "", name + " ");
    label.append(control);
    find("filters").append(label);
  }

  function buildFilters() {
    for (const [name, valuesOf] of Object.entries(FILTERS)) {
      const values = [...new Set(samples.flatMap(valuesOf))].filter(Boolean).sort();
      if (values.length < 2) continue;
      const select = make("select", "filter-" + name);
      select.append(new Option("all", ""), ...values.map(value => new Option(value, value)));
      select.onchange = () => { chosen[name] = select.value; limit = PAGE; draw(); };
      labelled(name, select);
    }
    search.type = "search";
    search.placeholder = "in questions and answers";
    search.oninput = () => { limit = PAGE; draw(); };
    labelled("search", search);
  }

  const textOf = sample => [sample.uid, sample.prompt, sample.gold, ...sample.answers.map(answer => answer.text)]
    .join("\n").toLowerCase();

  function fits(sample) {
    const words = search.value.toLowerCase();
    return Object.entries(chosen).every(([name, value]) => !value || FILTERS[name](sample).includes(value))
      && (!words || textOf(sample).includes(words));
  }

  function imagesOf(sample) {
    const box = make("div", "images");
    for (const place of sample.images) {
      if (place === null) { box.append(make("span", "left-out", "image left out: the page is full")); continue; }
      const image = make("img");
      image.alt = "image of " + sample.uid;
      image.onload = () => { if (Math.max(image.naturalWidth, image.naturalHeight) < SMALL) image.classList.add("small"); };
      image.src = images[place];
      box.append(image);
    }
    return box;
  }

  function answerOf(answer, name) {
    const box = make("div", "answer");
    box.append(make("div", "label", name), make("pre", "", answer.text || "\u00a0"));
    const facts = make("p", "verdict");
    const values = {verdict: answer.verdict, read: answer.read === null ? "nothing" : answer.read, rule: answer.rule,
      score: String(answer.score), tokens: String(answer.tokens)};
    for (const [key, value] of Object.entries(values)) {
      const fact = make("span", "", key + " ");
      fact.append(make("code", key === "verdict" ? "verdict-" + value.replace(" ", "-") : "", value));
      facts.append(fact);
    }
    box.append(facts);
    return box;
  }

  function card(sample) {
    const box = make("article", "example"), title = make("h4");
    title.append(make("span", "kind", sample.verdict), make("span", "uid", sample.uid),
      ["", sample.task, sample.view, sample.category].filter((part, place) => !place || part).join("  \u00b7  "));
    const answers = make("div", sample.answers.length > 1 ? "answers two" : "answers");
    sample.answers.forEach((answer, index) =>
      answers.append(answerOf(answer, sample.answers.length > 1 ? "answer of " + "AB"[index] : "answer")));
    const gold = make("p", "verdict", "gold ");
    gold.append(make("code", "", sample.gold));
    box.append(title, imagesOf(sample), make("div", "label", "prompt"), make("pre", "", sample.prompt), gold, answers);
    return box;
  }

  function draw() {
    const rest = samples.filter(fits);
    find("count").textContent = `${Math.min(limit, rest.length)} of ${rest.length} samples, ${samples.length} on this page`;
    find("cards").replaceChildren(...rest.slice(0, limit).map(card));
    find("more").hidden = rest.length <= limit;
  }

  find("more").onclick = () => { limit += PAGE; draw(); };
  buildFilters();
  draw();
}
document.querySelectorAll(".samples").forEach(sampleCards);
