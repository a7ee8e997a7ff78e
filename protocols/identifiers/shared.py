"""The never-list: values that many people share, so that listing one would hit the innocent."""

# Mail providers: the domain says nothing about a person. An address at one of them is fine.
PUBLIC_MAIL = frozenset(
    [
        "126.com",
        "139.com",
        "163.com",
        "189.cn",
        "21cn.com",
        "aliyun.com",
        "aol.com",
        "duck.com",
        "fastmail.com",
        "foxmail.com",
        "gmail.com",
        "gmx.com",
        "gmx.de",
        "googlemail.com",
        "hotmail.com",
        "icloud.com",
        "live.com",
        "live.cn",
        "mail.com",
        "mail.ru",
        "me.com",
        "msn.com",
        "naver.com",
        "outlook.com",
        "proton.me",
        "protonmail.com",
        "qq.com",
        "rambler.ru",
        "rediffmail.com",
        "sina.cn",
        "sina.com",
        "sohu.com",
        "tom.com",
        "tutanota.com",
        "vip.163.com",
        "vip.qq.com",
        "web.de",
        "wo.cn",
        "yahoo.cn",
        "yahoo.co.jp",
        "yahoo.co.uk",
        "yahoo.com",
        "yahoo.com.cn",
        "yandex.com",
        "yandex.ru",
        "yeah.net",
        "zoho.com",
    ]
)

# Platforms on which a page, not the domain, belongs to somebody.
PLATFORMS = frozenset(
    [
        "alibaba.com",
        "baidu.com",
        "bilibili.com",
        "blogspot.com",
        "douyin.com",
        "facebook.com",
        "github.com",
        "github.io",
        "instagram.com",
        "linkedin.com",
        "medium.com",
        "t.co",
        "t.me",
        "taobao.com",
        "telegram.me",
        "tiktok.com",
        "tumblr.com",
        "twitter.com",
        "vk.com",
        "weebly.com",
        "weibo.com",
        "wixsite.com",
        "wordpress.com",
        "x.com",
        "youtube.com",
        "zhihu.com",
    ]
)

SHARED_DOMAINS = PUBLIC_MAIL | PLATFORMS

# Serial numbers that broken or forged devices share.
PLACEHOLDER_DEVICES = frozenset(
    {
        "00000000-0000-0000-0000-000000000000",
        "imei:000000000000000",
        "imei:004999010640000",
        "imei:012345678901237",
        "mac:00:00:00:00:00:00",
        "mac:02:00:00:00:00:00",
        "mac:ff:ff:ff:ff:ff:ff",
        "9774d56d682e549c",
    }
)
