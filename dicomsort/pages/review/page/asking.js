// What the page asks of its server. Everything lies below the page's own address, which holds the token.
const base = new URL(".", location.href);
const seal = document.querySelector("meta[name=seal]").content;

export class Refused extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Refused(0, "the review's server does not answer; is `dicomsort review` still running?");
  }
  if (!response.ok) throw new Refused(response.status, (await response.text()).trim());
  return response.json();
}

export const ask = (path) => answer(fetch(new URL(path, base), { cache: "no-store" }));

export const act = (what, told) =>
  answer(
    fetch(new URL(what, base), {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Dicomsort": seal },
      body: JSON.stringify(told),
    }),
  );

export const picture = ({ place, version }, number, side) =>
  new URL(`picture/${place}/${version}/${number}/${side}`, base).href;
