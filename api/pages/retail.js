"use strict";
// Draws what /api/v1/reports/retail answers. The token comes in the address's fragment, which browsers do not
// send, so it reaches no log: /retail#token=...&tenant=demo&currency=GBP

const SVG = "http://www.w3.org/2000/svg";
const ENGINES = ["postgres", "clickhouse"];
const NAMES = { postgres: "Postgres", clickhouse: "ClickHouse" };
const COUNTRIES_DRAWN = 12;
const APART = 4; // a country this many times the next one would leave nothing to see of the others
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const at = (id) => document.getElementById(id);

class Told extends Error {}

function given() {
  const words = new URLSearchParams(location.hash.slice(1));
  return { token: words.get("token"), tenant: words.get("tenant"), currency: words.get("currency") || "GBP" };
}

async function ask(engine, { token, tenant, currency }) {
  const address = `/api/v1/reports/retail?${new URLSearchParams({ engine, currency })}`;
  let answer;
  try {
    answer = await fetch(address, {
      headers: { Authorization: `Bearer ${token}`, "Counterfoil-Tenant": tenant },
    });
  } catch {
    throw new Told("The API does not answer. Is it still running?");
  }
  if (answer.status === 401) throw new Told("The token is not the one of this installation. Open the address that make demo or counterfoil up printed.");
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Told(`${NAMES[engine]}: ${problem.title || `HTTP ${answer.status}`} ${problem.detail || ""}`);
  }
  return {
    report: await answer.json(),
    through: answer.headers.get("Counterfoil-Complete-Through"),
    parked: answer.headers.get("Counterfoil-Parked"),
  };
}

// ── text and numbers: amounts are exact decimal text, and only bars are drawn from their rounded value ──

function grouped(text) {
  const [, sign, whole, rest] = /^(-?)(\d+)(\..*)?$/.exec(String(text));
  return sign.replace("-", "\u2212") + whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest || "");
}

function short(value) {
  const size = Math.abs(value);
  const [unit, letter] = size >= 1e6 ? [1e6, "M"] : size >= 1e3 ? [1e3, "k"] : [1, ""];
  const shown = (size / unit).toFixed(unit > 1 && size / unit < 10 ? 2 : unit > 1 && size / unit < 100 ? 1 : 0);
  return (value < 0 ? "\u2212" : "") + shown + letter;
}

function month(name) {
  const [year, number] = name.split("-");
  return `${MONTHS[Number(number) - 1] || number} ${year}`;
}

// An object's keys that look like numbers lose their order, so what is ranked is ranked again here.
function ranked(amounts) {
  return Object.entries(amounts).sort(([a, one], [b, other]) => Number(other) - Number(one) || (a < b ? -1 : 1));
}

// ── elements ──

function make(name, attributes = {}, ...children) {
  const node = name.startsWith("svg:")
    ? document.createElementNS(SVG, name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function table(caption, rows) {
  const head = make("tr", {}, make("th", { scope: "col" }, caption), make("th", { scope: "col", class: "number" }, "Net revenue"));
  const body = rows.map(([name, amount]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "number" }, grouped(amount))));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

function steps(low, high) {
  const raw = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let n = Math.floor(low / step); n <= Math.ceil(high / step); n += 1) found.push(n * step);
  return found;
}

function drawing(id, title, description, width, height, ...marks) {
  return make("svg:svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${id}-title ${id}-desc` },
    make("svg:title", { id: `${id}-title` }, title), make("svg:desc", { id: `${id}-desc` }, description), ...marks);
}

function columns(id, title, rows) {
  const [width, height, left, bottom, top] = [900, 300, 56, 44, 22];
  const values = rows.map(([, amount]) => Number(amount));
  const rules = steps(Math.min(0, ...values), Math.max(0, ...values));
  const [low, high] = [rules[0], rules[rules.length - 1]];
  const y = (value) => top + (height - top - bottom) * (high - value) / (high - low || 1);
  const slot = (width - left) / rows.length;
  const bar = Math.min(slot * 0.66, 56);
  const marks = rules.flatMap((value) => [
    make("svg:line", { class: value === 0 ? "rule zero" : "rule", x1: left, x2: width, y1: y(value), y2: y(value) }),
    make("svg:text", { class: "soft", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)),
  ]);
  rows.forEach(([name, amount], nth) => {
    const value = Number(amount);
    const middle = left + slot * (nth + 0.5);
    const box = make("svg:rect", {
      class: value < 0 ? "bar back" : "bar", x: middle - bar / 2, width: bar, rx: 2,
      y: Math.min(y(0), y(value)), height: Math.max(Math.abs(y(value) - y(0)), 1),
    }, make("svg:title", {}, `${month(name)}: ${grouped(amount)}`));
    marks.push(box, make("svg:text", { class: "value", x: middle, y: Math.min(y(0), y(value)) - 6, "text-anchor": "middle" }, short(value)));
    const [first, year] = month(name).split(" ");
    marks.push(make("svg:text", { class: "soft", x: middle, y: height - bottom + 18, "text-anchor": "middle" }, first));
    if (nth === 0 || name.endsWith("-01")) {
      marks.push(make("svg:text", { class: "soft", x: middle, y: height - bottom + 35, "text-anchor": "middle" }, year));
    }
  });
  const best = rows.reduce((a, b) => (Number(b[1]) > Number(a[1]) ? b : a));
  return drawing(id, title, `${rows.length} months; the highest is ${month(best[0])} with ${grouped(best[1])}. The table below has every value.`, width, height, ...marks);
}

function rowsChart(id, title, rows) {
  const [width, line, left, right] = [900, 28, 170, 96];
  const largest = Math.max(...rows.map(([, amount]) => Math.abs(Number(amount))), 1);
  const marks = rows.flatMap(([name, amount], nth) => {
    const value = Number(amount);
    const length = Math.max(((width - left - right) * Math.abs(value)) / largest, 1);
    const y = nth * line;
    return [
      make("svg:text", { x: left - 10, y: y + 19, "text-anchor": "end" }, name.length > 22 ? `${name.slice(0, 21)}…` : name),
      make("svg:rect", { class: value < 0 ? "bar back" : "bar", x: left, y: y + 5, width: length, height: line - 9, rx: 2 },
        make("svg:title", {}, `${name}: ${grouped(amount)}`)),
      make("svg:text", { class: "soft", x: left + length + 8, y: y + 19 }, short(value)),
    ];
  });
  return drawing(id, title, `The ${rows.length} with the highest revenue, from ${rows[0][0]} with ${grouped(rows[0][1])} down. The table below has every country.`, width, rows.length * line + 4, ...marks);
}

// ── the page ──

function show(engine, answers, { currency }) {
  const { report, through, parked } = answers[engine];
  const figures = [
    [`Net revenue, ${currency}`, grouped(report.net_revenue)],
    ["Orders", grouped(report.orders)],
    ["Returns", grouped(report.returns)],
    ["Invoice lines", grouped(report.lines)],
  ];
  at("figures").replaceChildren(...figures.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value))));

  const months = Object.entries(report.by_month);
  at("month-heading").textContent = `By month, in ${currency}`;
  at("month-chart").replaceChildren(columns("month", `Net revenue by month in ${currency}`, months));
  at("month-table").replaceChildren(table("Month", months.map(([name, amount]) => [month(name), amount])));

  const countries = ranked(report.by_country);
  const apart = countries.length > 2 && Number(countries[0][1]) > APART * Number(countries[1][1]) ? 1 : 0;
  const drawn = countries.slice(apart, apart + COUNTRIES_DRAWN);
  at("country-heading").textContent = `By country, in ${currency}`;
  at("country-chart").replaceChildren(
    make("p", { class: "soft" }, countryWords(countries, apart, drawn.length, report.net_revenue)),
    rowsChart("country", `Net revenue by country in ${currency}`, drawn));
  at("country-table").replaceChildren(table("Country", countries));
  at("customer-table").replaceChildren(table("Customer", ranked(report.top_customers)));
  at("compared").replaceChildren(compared(answers));
  at("footer").textContent = `${NAMES[engine]}, complete through position ${through}.`
    + (parked ? ` ${parked} facts wait for a repair and are missing.` : "");
}

function countryWords(countries, apart, drawn, all) {
  const [name, amount] = countries[0];
  const share = ((100 * Number(amount)) / Number(all)).toFixed(1);
  const first = apart ? `${name} has ${grouped(amount)}, ${share} % of all, and is left out of the drawing. ` : "";
  return first + (drawn + apart < countries.length ? `Of ${countries.length} countries, the ${drawn} ${apart ? "next" : "first"}.` : "");
}

function compared(answers) {
  const [one, other] = ENGINES.map((engine) => answers[engine]?.report);
  if (!one || !other) return make("p", {}, "Only one of them answers.");
  const asked = [
    ["Net revenue", (report) => report.net_revenue],
    ["Orders", (report) => report.orders],
    ["Returns", (report) => report.returns],
    ["Invoice lines", (report) => report.lines],
    ...Object.keys(one.net_units).map((code) => [`Net units of ${code}`, (report) => report.net_units[code]]),
  ];
  const head = make("tr", {}, ...["Figure", ...ENGINES.map((engine) => NAMES[engine])].map((name, nth) =>
    make("th", { scope: "col", class: nth ? "number" : "" }, name)));
  const body = asked.map(([name, of]) => make("tr", {}, make("th", { scope: "row" }, name),
    ...[one, other].map((report) => make("td", { class: "number" }, grouped(of(report))))));
  const same = JSON.stringify(one) === JSON.stringify(other);
  const words = same
    ? "They agree on every figure, month, country and customer."
    : "They are not equally far yet; what is missing is on its way.";
  return make("div", {}, make("p", {}, words), make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function say(words) {
  at("notice").hidden = false;
  at("notice").firstElementChild.textContent = words;
}

async function start() {
  at("notice").hidden = true;
  at("report").hidden = true;
  at("engines").disabled = true;
  const who = given();
  if (!who.token || !who.tenant) {
    say("The address needs a token and a tenant: /retail#token=…&tenant=demo. make demo and counterfoil up print it whole.");
    return;
  }
  at("whose").textContent = `Tenant ${who.tenant}, from the read models, through the API.`;
  const settled = await Promise.allSettled(ENGINES.map((engine) => ask(engine, who)));
  const answers = {};
  settled.forEach((each, nth) => { if (each.status === "fulfilled") answers[ENGINES[nth]] = each.value; });
  const failed = settled.find((each) => each.status === "rejected");
  if (failed) say(failed.reason instanceof Told ? failed.reason.message : "The page has a fault; its details are in the browser's console.");
  if (failed && !(failed.reason instanceof Told)) console.error(failed.reason);
  const there = ENGINES.filter((engine) => answers[engine]);
  if (!there.length) return;
  if (there.every((engine) => !answers[engine].report.lines)) {
    say(`Nothing is recorded for tenant ${who.tenant} in ${who.currency}. Import a file: counterfoil import retail FILE --tenant ${who.tenant}`);
    return;
  }
  for (const input of document.querySelectorAll("input[name=engine]")) {
    input.disabled = !answers[input.value];
    input.onchange = () => show(input.value, answers, who);
  }
  const chosen = document.querySelector("input[name=engine]:checked").value;
  const engine = answers[chosen]?.report.lines ? chosen : there.find((each) => answers[each].report.lines);
  document.querySelector(`input[value=${engine}]`).checked = true;
  show(engine, answers, who);
  at("engines").disabled = false;
  at("report").hidden = false;
}

window.addEventListener("hashchange", start);
start();
