/* What the theme puts on a page, for those who use a keyboard or a screen reader: a table that is wider than the page can be
   reached and scrolled, a copy button is no landmark, the search and a page's own contents have names of their own, and where the
   list of pages is folded away, a key opens it. */
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => reachable(target)));

function reachable(box) {
  const boxes = [...document.querySelectorAll(".md-typeset__scrollwrap")];
  const heads = [...box.querySelectorAll("th")].map((cell) => cell.innerText.trim()).filter(Boolean);
  const words = { tabindex: "0", role: "region", "aria-label": `Table ${boxes.indexOf(box) + 1}: ${heads.join(", ")}` };
  for (const [name, value] of Object.entries(words)) {
    if (box.scrollWidth > box.clientWidth) box.setAttribute(name, value);
    else box.removeAttribute(name);
  }
}

function tend() {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((box) => resized.observe(box)); // twice is once
  document.querySelectorAll(".md-nav--secondary nav[aria-label]:not([data-own])").forEach((part) => {
    part.dataset.own = "true";
    part.setAttribute("aria-label", `On this page: ${part.getAttribute("aria-label")}`);
  });
  document.querySelectorAll("nav.md-code__nav").forEach((bar) => bar.setAttribute("role", "none"));
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search the documentation");
  document.querySelector(".md-search__options")?.setAttribute("aria-label", "Search: options");
}

document.getElementById("__drawer").setAttribute("aria-label", "Show the list of pages");
new MutationObserver(tend).observe(document.body, { childList: true, subtree: true });
tend();
