// What is told of one item, beside its picture. Everything that comes from files is text and nothing else.
export const $ = (id) => document.getElementById(id);

export function describe(facts) {
  $("picture").alt = `Held for ${facts.reason}`;
  $("state").textContent =
    facts.state === "decided" ? `Decided: ${facts.class}, ${facts.by}` : facts.state === "gone" ? "Not held any more" : "";
  $("reason").textContent = facts.reason;
  $("why").textContent = facts.why;
  const more = facts.fellows.length;
  $("fellows").hidden = !more;
  $("fellows-told").textContent = `Decide ${more === 1 ? "the other one" : `all ${more} others`} of this study too (Shift)`;
  const told = [
    ["Header says", facts.header || "nothing"],
    ["Pixels said", facts.pixels ? `${facts.pixels} (${(100 * Number(facts.confidence)).toFixed(0)} %) when it was sorted` : "nothing; not asked"],
    ...Object.entries(facts.identifiers ?? {}),
    ["Files", `${facts.files.toLocaleString("en")} (${facts.size})`],
    ["Modality", facts.modality],
    ["What it is", facts.title],
    ...Object.entries(facts.codes),
    ["Path in the inbox", facts.paths.join("\n") + (facts.files > facts.paths.length ? "\n…" : "")],
    ["Study", facts.study_uid],
    ["Series", facts.series_uid],
    ["Remark", facts.message],
    ["Problem", facts.problem],
  ];
  $("told").replaceChildren(
    ...told.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
  drawBars(facts);
  $("frames").hidden = facts.pictures < 2;
  $("frame").max = facts.pictures - 1;
  $("frame").value = Math.floor(facts.pictures / 2);
}

function element(name, words) {
  const made = document.createElement(name);
  made.textContent = words;
  return made;
}

function drawBars(facts) {
  const rows = Object.entries(facts.probabilities).sort((a, b) => b[1] - a[1]);
  const mean = facts.pictures > 1 ? `, mean of ${facts.looks} pictures` : "";
  $("bars-head").textContent = rows.length ? `What the model sees now${mean}` : "";
  $("bars").replaceChildren(
    ...rows.map(([label, share]) => {
      const row = document.createElement("div");
      row.className = "share";
      const bar = document.createElement("progress");
      bar.max = 1;
      bar.value = share;
      bar.setAttribute("aria-label", label);
      row.append(element("span", label), bar, element("span", `${(100 * share).toFixed(share > 0.995 ? 1 : 0)} %`));
      return row;
    }),
  );
}
