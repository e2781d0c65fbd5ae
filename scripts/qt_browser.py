"""QtWebEngine as a headless browser: python qt_browser.py PORT PROFILE WIDTH HEIGHT."""

import os
import sys

PORT, PROFILE, WIDTH, HEIGHT = sys.argv[1:5]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["QTWEBENGINE_DISABLE_SANDBOX"] = "1"
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = (
    "--disable-gpu --enable-unsafe-swiftshader --disable-background-networking --disable-dev-shm-usage"
)
os.environ["QTWEBENGINE_REMOTE_DEBUGGING"] = f"127.0.0.1:{PORT}"

from PySide6.QtCore import QUrl  # noqa: E402
from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile  # noqa: E402
from PySide6.QtWebEngineWidgets import QWebEngineView  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

app = QApplication(sys.argv[:1])
profile = QWebEngineProfile()
profile.setCachePath(PROFILE)
view = QWebEngineView()
page = QWebEnginePage(profile, view)
view.setPage(page)
view.resize(int(WIDTH), int(HEIGHT))
view.load(QUrl("about:blank"))
view.show()
raise SystemExit(app.exec())
