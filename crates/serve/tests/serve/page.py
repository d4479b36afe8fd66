"""Uses the page as a person would, in Chromium: the server's address, an adapter's folder, where screenshots go, the browser."""

import sys

from playwright.sync_api import sync_playwright

address, folder, shots, chromium = sys.argv[1:5]
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1200, "height": 1100})
    problems, foreign = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: foreign.append(request.url) if not request.url.startswith((address, "data:")) else None)
    page.goto(address)
    page.wait_for_selector("#adapters tr >> nth=1")
    rows = page.locator("#adapters tr")
    names = [rows.nth(row).get_attribute("data-name") for row in range(rows.count())]
    for name in names[:3]:
        page.check(f'#adapters tr[data-name="{name}"] input')
    page.fill("#prompt", "Tell me about the sea.")
    page.fill("#temperature", "1")
    page.fill("#tokens", "400")
    page.click("#send")
    page.wait_for_selector(".answer[data-done] >> nth=2", timeout=60000)
    texts = page.locator(".answer pre").all_text_contents()
    assert len(texts) == 3 and all(texts), texts
    assert page.locator(".answer.bad").count() == 0
    # They came piece by piece.
    boxes = page.locator(".answer")
    assert all(int(boxes.nth(box).get_attribute("data-pieces")) > 1 for box in range(3))
    page.screenshot(path=shots + "/asked.png", full_page=True)
    page.fill("#load-name", "copy-of-it")
    page.fill("#load-path", folder)
    page.click("#load-form button")
    page.wait_for_selector('#adapters tr[data-name="copy-of-it"]')
    assert "loaded" in page.text_content('#adapters tr[data-name="copy-of-it"]')
    page.fill("#load-name", "nowhere")
    page.fill("#load-path", "../..")
    page.click("#load-form button")
    page.wait_for_selector("#notice.bad")
    assert "not within" in page.text_content("#notice")
    page.wait_for_timeout(2500)
    assert page.get_attribute("#rate-chart polyline", "points")
    page.screenshot(path=shots + "/loaded.png", full_page=True)
    page.click('#adapters tr[data-name="copy-of-it"] button')
    page.wait_for_selector('#adapters tr[data-name="copy-of-it"]', state="detached")
    problems = [problem for problem in problems if "403" not in problem]
    assert not problems and not foreign, (problems, foreign)
    browser.close()
    print("content")
