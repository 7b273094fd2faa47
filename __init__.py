"""maftplus"""
